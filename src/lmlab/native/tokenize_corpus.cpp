// Sampling by one chance for every chunk: when the sample outgrows its budget, the chance falls and what is there
// is thinned with the same odds, so that no key has to be kept for a chunk.
#include "tokenize_corpus.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lmlab::tokenize {

namespace {
constexpr double THIN = 0.8;
constexpr int64_t CHUNK_COST = 24;  // bytes beside the text that a chunk takes

uint64_t hash_of(View chunk) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ static_cast<uint64_t>(chunk.size);
    int64_t i = 0;
    auto stir = [&](uint64_t word) {
        h = (h ^ word) * 0xBF58476D1CE4E5B9u;
        h ^= h >> 29;
    };
    for (uint64_t word; i + 8 <= chunk.size; i += 8) {
        std::memcpy(&word, chunk.data + i, 8);
        stir(word);
    }
    uint64_t last = 0;
    std::memcpy(&last, chunk.data + i, static_cast<size_t>(chunk.size - i));
    stir(last);
    return h ^ (h >> 32);
}
}  // namespace

Corpus::Corpus(const Rules& rules, int64_t budget, uint64_t seed)
    : rules_(rules), budget_(budget), random_(seed, 0), table_(1024, 0) {}

void Corpus::add(View text) {
    bytes_read += text.size;
    each_chunk(
        text, rules_,
        [&](View chunk) {
            if (chance_ == 1.0 || random_.uniform() < chance_) add_chunk(chunk);
        },
        [&](uint8_t byte) { ++boundary_counts_[byte]; });
}

size_t Corpus::slot(View chunk, uint64_t hash) const {
    const size_t mask = table_.size() - 1;
    size_t at = hash & mask;
    while (table_[at] != 0) {
        const Chunk& other = chunks_[table_[at] - 1];
        if (other.size == chunk.size && std::memcmp(bytes_.data() + other.start, chunk.data, other.size) == 0) break;
        at = (at + 1) & mask;
    }
    return at;
}

void Corpus::add_chunk(View chunk) {
    const size_t at = slot(chunk, hash_of(chunk));
    bytes_used += chunk.size;
    if (table_[at] != 0) {
        ++chunks_[table_[at] - 1].count;
        return;
    }
    chunks_.push_back({static_cast<int64_t>(bytes_.size()), static_cast<uint32_t>(chunk.size), 1});
    bytes_.insert(bytes_.end(), chunk.data, chunk.data + chunk.size);
    table_[at] = static_cast<uint32_t>(chunks_.size());
    if (2 * chunks_.size() > table_.size()) rebuild_table(2 * table_.size());
    while (static_cast<int64_t>(bytes_.size()) + CHUNK_COST * static_cast<int64_t>(chunks_.size()) > budget_ &&
           chunks_.size() > 1)
        thin();
}

void Corpus::thin() {
    chance_ *= THIN;
    size_t kept = 0;
    int64_t end = 0;
    bytes_used = 0;
    for (Chunk chunk : chunks_) {
        uint32_t count = 0;
        for (uint32_t k = 0; k < chunk.count; ++k) count += random_.uniform() < THIN;
        if (count == 0) continue;
        std::memmove(bytes_.data() + end, bytes_.data() + chunk.start, chunk.size);
        chunks_[kept++] = {end, chunk.size, count};
        end += chunk.size;
        bytes_used += static_cast<int64_t>(chunk.size) * count;
    }
    chunks_.resize(kept);
    bytes_.resize(static_cast<size_t>(end));
    rebuild_table(table_.size());
}

void Corpus::rebuild_table(size_t size) {
    table_.assign(size, 0);
    for (size_t i = 0; i < chunks_.size(); ++i) {
        const View chunk = text(chunks_[i]);
        size_t at = hash_of(chunk) & (size - 1);
        while (table_[at] != 0) at = (at + 1) & (size - 1);
        table_[at] = static_cast<uint32_t>(i) + 1;
    }
}

void Corpus::finish() {
    std::vector<uint32_t>().swap(table_);
    bytes_.shrink_to_fit();
    chunks_.shrink_to_fit();
    for (int64_t& count : boundary_counts_) {  // the share that goes with the chunks kept
        count = std::llround(static_cast<double>(count) * chance_);
        bytes_used += count;
    }
}

void Corpus::restore(std::vector<uint8_t> bytes, std::vector<Chunk> chunks, const int64_t* boundary_counts,
                     double chance) {
    bytes_ = std::move(bytes);
    chunks_ = std::move(chunks);
    std::copy(boundary_counts, boundary_counts + 256, boundary_counts_.begin());
    chance_ = chance;
    std::vector<uint32_t>().swap(table_);
}

}  // namespace lmlab::tokenize
