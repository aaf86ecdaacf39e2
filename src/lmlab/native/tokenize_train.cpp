// Counts are whole numbers (or, when soft, multiples of 2^-20), so that their sums don't depend on who adds first.
#include "tokenize_train.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "parallel.h"
#include "tokenize_encode.h"
#include "tokenize_lattice.h"

namespace lmlab::tokenize {

namespace {
constexpr double NO_SCORE = -std::numeric_limits<double>::infinity();
constexpr double UNSEEN = 0.1;  // the count that a piece without one is scored by
constexpr double FIXED = 1 << 20;
constexpr int64_t RUN_BYTES = 64 << 10;
constexpr int64_t PLACES = 64;  // that a corpus is divided into at least, to see how widely a piece is spread

// Consecutive chunks of about RUN_BYTES: what a worker takes at once.
template <class Chunks, class Size>
std::vector<size_t> runs_of(const Chunks& chunks, Size&& size) {
    std::vector<size_t> first;
    int64_t bytes = RUN_BYTES;
    for (size_t i = 0; i < chunks.size(); ++i) {
        if (bytes >= RUN_BYTES) {
            first.push_back(i);
            bytes = 0;
        }
        bytes += size(chunks[i]) + 16;
    }
    first.push_back(chunks.size());
    return first;
}

// Calls visit(id) for the pieces of the best segmentation.
template <class Visit>
void each_best(const Trie& trie, View text, Scratch& scratch, Visit&& visit) {
    const int32_t* back = viterbi(trie.units.data(), text, scratch);
    for (int64_t end = text.size; end > 0;) {
        const Leaf leaf = trie.leaves[back[end]];
        visit(leaf.id);
        end -= leaf.length;
    }
}
}  // namespace

Trainer::Trainer(const Corpus& corpus, Seeds seeds) : corpus_(corpus) {
    for (int byte = 0; byte < 256; ++byte) {
        const uint8_t value = static_cast<uint8_t>(byte);
        all_.push({&value, 1});
    }
    occurrences_.assign(256, 0);
    for (size_t i = 0; i < seeds.pieces.size(); ++i) {
        all_.push(seeds.pieces[i]);
        occurrences_.push_back(seeds.counts[i]);
    }
    for (const Corpus::Chunk& chunk : corpus.chunks())
        for (uint32_t k = 0; k < chunk.size; ++k) occurrences_[corpus.bytes()[chunk.start + k]] += chunk.count;
    for (int byte = 0; byte < 256; ++byte) occurrences_[byte] += corpus.boundary_counts()[byte];
    places_.assign(all_.size(), 0);
    members_.resize(all_.size());
    for (size_t i = 0; i < members_.size(); ++i) members_[i] = static_cast<uint32_t>(i);
    // The first scores: occurrences times length, as if each byte were covered by every piece that holds it.
    counts_.resize(all_.size());
    for (size_t i = 0; i < all_.size(); ++i) counts_[i] = static_cast<double>(occurrences_[i]) * all_[i].size;
    scores_.assign(all_.size(), NO_SCORE);
    rebuild();
    update_scores();
}

Trainer::Trainer(const Corpus& corpus, Strings all, std::vector<uint64_t> occurrences, State state)
    : corpus_(corpus), all_(std::move(all)), occurrences_(std::move(occurrences)), members_(std::move(state.members)),
      counts_(std::move(state.counts)), scores_(std::move(state.scores)), places_(all_.size(), 0) {
    rebuild();
    trie_.set_values(scores_.data(), NO_SCORE);
}

void Trainer::rebuild() { trie_ = Trie(all_, members_); }

void Trainer::update_scores() {
    double total = 0.0;
    for (uint32_t id : members_) total += std::max(counts_[id], UNSEEN);
    for (uint32_t id : members_) scores_[id] = std::log(std::max(counts_[id], UNSEEN) / total);
    trie_.set_values(scores_.data(), NO_SCORE);
}

double Trainer::step(bool soft, int workers, const Interrupt& interrupt) {
    std::vector<int64_t> counts(all_.size(), 0);
    std::fill(places_.begin(), places_.end(), 0);
    std::vector<Wide> weights;
    if (soft) weights = wide_weights(scores_.data(), scores_.size(), 1.0);
    const auto& chunks = corpus_.chunks();
    const auto runs = runs_of(chunks, [](const Corpus::Chunk& chunk) { return chunk.size; });
    const int64_t place_bytes = std::clamp<int64_t>(static_cast<int64_t>(corpus_.bytes().size()) / PLACES, 256, RUN_BYTES);
    std::mutex merging;
    const int64_t share = std::max<int64_t>(1, static_cast<int64_t>(runs.size()) / (8 * std::max(1, workers)));
    parallel_for(workers, static_cast<int64_t>(runs.size()) - 1, share, [&](int64_t begin, int64_t end) {
        Scratch scratch;
        std::vector<int64_t> own(all_.size(), 0);
        std::vector<uint32_t> own_places(soft ? 0 : all_.size(), 0), last(soft ? 0 : all_.size(), 0);
        std::vector<double> expected(soft ? all_.size() : 0);
        uint32_t place = 0;
        for (int64_t run = begin; run < end; ++run) {
            int64_t next = 0;  // where the next place begins; a run begins one, so that workers see the same places
            for (size_t i = runs[run]; i < runs[run + 1]; ++i) {
                const Corpus::Chunk& chunk = chunks[i];
                if (soft) {
                    add_marginals(trie_, weights, corpus_.text(chunk), chunk.count, expected.data());
                    continue;
                }
                if (chunk.start >= next) {
                    ++place;
                    next = chunk.start + place_bytes;
                }
                each_best(trie_, corpus_.text(chunk), scratch, [&](uint32_t id) {
                    own[id] += chunk.count;
                    own_places[id] += chunk.count - (last[id] == place);  // a chunk that repeats does so elsewhere
                    last[id] = place;
                });
            }
            if (soft)  // rounded run by run: what a run adds doesn't depend on the others
                for (size_t id = 0; id < own.size(); ++id) {
                    own[id] += std::llround(expected[id] * FIXED);
                    expected[id] = 0.0;
                }
            interrupt.poll();
        }
        std::lock_guard<std::mutex> guard(merging);
        for (size_t id = 0; id < own.size(); ++id) counts[id] += own[id];
        for (size_t id = 0; id < own_places.size(); ++id) places_[id] += own_places[id];
    });
    double tokens = 0.0;
    for (size_t id = 0; id < counts.size(); ++id) {
        counts_[id] = soft ? static_cast<double>(counts[id]) / FIXED : static_cast<double>(counts[id]);
        if (id < 256) counts_[id] += static_cast<double>(corpus_.boundary_counts()[id]);
        tokens += counts_[id];
    }
    update_scores();
    return tokens;
}

void Trainer::drop_rare(double min_count) {
    const size_t before = members_.size();
    members_.erase(std::remove_if(members_.begin() + 256, members_.end(),
                                  [&](uint32_t id) { return counts_[id] < min_count; }),
                   members_.end());
    if (members_.size() == before) return;
    rebuild();
    update_scores();
}

// The best segmentation of a piece without itself: its parts from last to first, and its score.
double Trainer::instead_of(uint32_t id, std::vector<double>& best, std::vector<uint32_t>& last,
                           std::vector<uint32_t>& parts) const {
    const View piece = all_[id];
    best.assign(static_cast<size_t>(piece.size) + 1, NO_SCORE);
    last.assign(static_cast<size_t>(piece.size) + 1, 0);
    best[0] = 0.0;
    for (int64_t start = 0; start < piece.size; ++start)
        each_piece(trie_, piece, start, [&](int64_t stop, Leaf leaf) {
            if (leaf.id == id) return;
            const double score = best[start] + scores_[leaf.id];
            if (score > best[stop]) {
                best[stop] = score;
                last[stop] = leaf.id;
            }
        });
    for (int64_t stop = piece.size; stop > 0; stop -= all_[last[stop]].size) parts.push_back(last[stop]);
    return best.back();
}

// Counts tell what the corpus needs; a vocabulary is for other texts. Of a piece that is found in p places about one
// place in p is luck (absolute discounting: Kneser and Ney, 1995): as much of its count is taken away and given to
// the parts that will stand there in another text, from the longest pieces to the shortest.
void Trainer::prune(size_t target, Pruning pruning, int workers, const Interrupt& interrupt) {
    if (members_.size() <= target) return;
    const int64_t candidates = static_cast<int64_t>(members_.size()) - 256;
    constexpr int64_t GRAIN = 4096;
    std::vector<std::vector<uint32_t>> parts(static_cast<size_t>(candidates / GRAIN + 1));  // of GRAIN candidates each
    std::vector<uint32_t> first(static_cast<size_t>(candidates)), ways(static_cast<size_t>(candidates));
    std::vector<double> worth(all_.size(), std::numeric_limits<double>::infinity());
    parallel_for(workers, candidates, GRAIN, [&](int64_t begin, int64_t end) {
        std::vector<double> best;
        std::vector<uint32_t> last;
        for (int64_t k = begin; k < end; ++k) {
            if ((k & 0xFFF) == 0) interrupt.poll();
            const uint32_t id = members_[256 + k];
            std::vector<uint32_t>& some = parts[k / GRAIN];
            first[k] = static_cast<uint32_t>(some.size());
            worth[id] = counts_[id] * (scores_[id] - instead_of(id, best, last, some));
            ways[k] = static_cast<uint32_t>(some.size()) - first[k];
        }
    });
    if (pruning == Pruning::compression) {
        std::vector<std::vector<uint32_t>> by_length(256);
        for (int64_t k = 0; k < candidates; ++k)
            by_length[all_[members_[256 + k]].size].push_back(static_cast<uint32_t>(k));
        std::vector<double> count = counts_, place(places_.begin(), places_.end());
        for (size_t length = by_length.size(); length-- > 2;)
            for (uint32_t k : by_length[length]) {
                const uint32_t id = members_[256 + k];
                const double luck = place[id] > 1.0 ? 1.0 / place[id] : 1.0;
                const uint32_t* part = parts[k / GRAIN].data() + first[k];
                for (uint32_t i = 0; i < ways[k]; ++i) {
                    count[part[i]] += luck * count[id];
                    place[part[i]] += std::min(1.0, place[id]);
                }
                worth[id] = (1.0 - luck) * count[id] * (ways[k] - 1.0) + 1e-3 * worth[id];
            }
    }
    std::nth_element(members_.begin() + 256, members_.begin() + static_cast<std::ptrdiff_t>(target), members_.end(),
                     [&](uint32_t a, uint32_t b) { return worth[a] != worth[b] ? worth[a] > worth[b] : a < b; });
    members_.resize(target);
    std::sort(members_.begin() + 256, members_.end());
    rebuild();
    update_scores();
}

void Trainer::refill(size_t target) {
    if (members_.size() >= target) return;
    std::vector<bool> present(all_.size(), false);
    for (uint32_t id : members_) present[id] = true;
    std::vector<uint32_t> absent;
    for (uint32_t id = 256; id < all_.size(); ++id)
        if (!present[id]) absent.push_back(id);
    const size_t take = std::min(absent.size(), target - members_.size());
    std::partial_sort(absent.begin(), absent.begin() + static_cast<std::ptrdiff_t>(take), absent.end(),
                      [&](uint32_t a, uint32_t b) {
                          return occurrences_[a] != occurrences_[b] ? occurrences_[a] > occurrences_[b] : a < b;
                      });
    for (size_t i = 0; i < take; ++i) {
        counts_[absent[i]] = 0.0;
        members_.push_back(absent[i]);
    }
    std::sort(members_.begin() + 256, members_.end());
    rebuild();
    update_scores();
}

void Trainer::start_counts() { std::fill(counts_.begin(), counts_.end(), 0.0); }

void Trainer::count(const std::vector<View>& texts, int workers, const Interrupt& interrupt) {
    std::vector<View> chunks;
    for (View text : texts)
        each_chunk(
            text, corpus_.rules(), [&](View chunk) { chunks.push_back(chunk); },
            [&](uint8_t byte) { counts_[byte] += 1.0; });
    const auto runs = runs_of(chunks, [](View chunk) { return chunk.size; });
    const int64_t count = static_cast<int64_t>(runs.size()) - 1;
    std::mutex merging;
    parallel_for(workers, count, (count + workers - 1) / workers, [&](int64_t begin, int64_t end) {
        Scratch scratch;
        std::vector<int64_t> own(all_.size(), 0);
        for (int64_t run = begin; run < end; ++run) {
            for (size_t i = runs[run]; i < runs[run + 1]; ++i) each_best(trie_, chunks[i], scratch, [&](uint32_t id) { ++own[id]; });
            interrupt.poll();
        }
        std::lock_guard<std::mutex> guard(merging);
        for (size_t id = 0; id < own.size(); ++id) counts_[id] += static_cast<double>(own[id]);
    });
}

double Trainer::finish_counts() {
    update_scores();
    double tokens = 0.0;
    for (uint32_t id : members_) tokens += counts_[id];
    return tokens;
}

}  // namespace lmlab::tokenize
