// The text that a vocabulary is learned from: distinct chunks with counts, a uniform sample where all doesn't fit.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tokenize_random.h"
#include "tokenize_trie.h"

namespace lmlab::tokenize {

// Which bytes may stand where in a learned piece.
struct Rules {
    std::array<bool, 256> boundary{};  // in no piece longer than one byte: texts are cut here
    bool characters_whole = true;
    bool split_digits = false;
    int64_t max_piece_bytes = 18;
};

// Cuts texts into chunks, keeps each chunk with the same chance, and equal ones once, in at most `budget` bytes.
class Corpus {
public:
    Corpus(const Rules& rules, int64_t budget, uint64_t seed);

    void add(View text);
    void finish();  // frees what only `add` needs

    struct Chunk {
        int64_t start;  // in bytes()
        uint32_t size;
        uint32_t count;
    };
    const std::vector<Chunk>& chunks() const { return chunks_; }
    const std::vector<uint8_t>& bytes() const { return bytes_; }
    View text(const Chunk& chunk) const { return {bytes_.data() + chunk.start, chunk.size}; }
    const std::array<int64_t, 256>& boundary_counts() const { return boundary_counts_; }
    const Rules& rules() const { return rules_; }

    int64_t bytes_read = 0, bytes_used = 0, texts = 0;  // bytes_used: of the chunks kept, with their counts
    bool whole() const { return chance_ == 1.0; }

    double chance() const { return chance_; }
    // What `finish` left of a corpus before, in place of everything that this one holds.
    void restore(std::vector<uint8_t> bytes, std::vector<Chunk> chunks, const int64_t* boundary_counts, double chance);

private:
    void add_chunk(View chunk);
    void thin();
    void rebuild_table(size_t size);
    size_t slot(View chunk, uint64_t hash) const;

    Rules rules_;
    int64_t budget_;
    Random random_;
    double chance_ = 1.0;  // that a chunk is kept
    std::vector<Chunk> chunks_;
    std::vector<uint8_t> bytes_;
    std::vector<uint32_t> table_;  // open addressing: index of a chunk + 1, or 0
    std::array<int64_t, 256> boundary_counts_{};
};

// Where text must be cut if no boundary does it: calls visit(chunk) for each chunk and boundary(byte) for each
// boundary byte between them. Chunks longer than 64 KiB are cut at a character border.
template <class Visit, class Boundary>
void each_chunk(View text, const Rules& rules, Visit&& visit, Boundary&& boundary) {
    constexpr int64_t LONGEST = 64 << 10;
    auto emit = [&](int64_t start, int64_t end) {
        while (end - start > LONGEST) {
            int64_t cut = start + LONGEST;
            for (int back = 0; back < 3 && (text.data[cut] & 0xC0) == 0x80; ++back) --cut;
            visit(View{text.data + start, cut - start});
            start = cut;
        }
        if (end > start) visit(View{text.data + start, end - start});
    };
    int64_t start = 0;
    for (int64_t i = 0; i < text.size; ++i)
        if (rules.boundary[text.data[i]]) {
            emit(start, i);
            boundary(text.data[i]);
            start = i + 1;
        }
    emit(start, text.size);
}

}  // namespace lmlab::tokenize
