// Encoding in parallel: runs of texts, each into its own buffer, then one copy.
#include "tokenize_batch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "parallel.h"

namespace lmlab::tokenize {

namespace {
constexpr double NO_SCORE = -std::numeric_limits<double>::infinity();
constexpr size_t WEIGHTS_KEPT = 4;
constexpr int64_t RUN_BYTES = 64 << 10;

std::vector<uint32_t> normal_ids(const std::vector<double>& scores) {
    std::vector<uint32_t> ids;
    for (size_t i = 0; i < scores.size(); ++i)
        if (scores[i] != NO_SCORE) ids.push_back(static_cast<uint32_t>(i));
    return ids;
}
}  // namespace

Vocabulary::Vocabulary(Strings pieces_, std::vector<double> scores_)
    : pieces(std::move(pieces_)), scores(std::move(scores_)), trie(pieces, normal_ids(scores)) {
    trie.set_values(scores.data(), NO_SCORE);
}

const Vocabulary::Best& Vocabulary::best() {
    if (!best_) {
        Automaton ending(pieces, normal_ids(scores), Reading::forward);
        Matches matches = ending.matches(scores.data(), NO_SCORE);
        best_ = std::make_unique<const Best>(Best{std::move(ending), std::move(matches)});
    }
    return *best_;
}

std::shared_ptr<const Weights> Vocabulary::weights(double alpha) {
    for (size_t i = 0; i < recent_.size(); ++i)
        if (recent_[i]->alpha == alpha) {
            std::rotate(recent_.begin(), recent_.begin() + static_cast<std::ptrdiff_t>(i),
                        recent_.begin() + static_cast<std::ptrdiff_t>(i) + 1);
            return recent_.front();
        }
    double greatest = 0.0;
    for (double score : scores)
        if (score != NO_SCORE) greatest = std::max(greatest, std::fabs(alpha * score));
    if (greatest > 1e15) throw std::overflow_error("alpha times a score is beyond 1e15: exp of it has no digits left");
    auto made = std::make_shared<Weights>();
    made->alpha = alpha;
    made->beginning = nullptr;
    made->wide = wide_weights(scores.data(), scores.size(), alpha);
    if (greatest <= WEIGHT_LOG_LIMIT) {
        std::vector<double> plain(scores.size());
        for (size_t i = 0; i < plain.size(); ++i) plain[i] = made->wide[i].value();
        if (!beginning_)
            beginning_ = std::make_unique<const Automaton>(pieces, normal_ids(scores), Reading::backward);
        made->matches = beginning_->matches(plain.data(), 0.0);
        made->beginning = beginning_.get();
    }
    recent_.push_front(made);
    if (recent_.size() > WEIGHTS_KEPT) recent_.pop_back();
    return made;
}

void encode(const Vocabulary& vocabulary, const Texts& texts, const Draw& draw, uint64_t stream, Rooms& rooms,
            std::vector<uint32_t>& ids, int64_t* counts) {
    if (draw.best) return segment_best(draw.best->ending, draw.best->matches, texts, rooms, ids, counts);
    const Weights& weights = *draw.weights;
    if (!draw.biased && weights.beginning)
        return segment_draw(*weights.beginning, weights.matches, texts, draw.seed, stream, rooms, ids, counts);
    const Trie& trie = vocabulary.trie;
    Scratch scratch;
    int64_t begin = 0;
    for (size_t i = 0; i < texts.count; ++i) {
        const View text{texts.bytes + begin, texts.ends[i] - begin};
        const size_t before = ids.size();
        Random random(draw.seed, stream + i);
        if (!draw.biased) sample_wide(trie, weights.wide, text, random, ids);
        else
            trace(viterbi_sampling(trie.units.data(), text, weights.alpha, random, scratch), trie.leaves.data(),
                  text.size, ids);
        counts[i] = static_cast<int64_t>(ids.size() - before);
        begin = texts.ends[i];
    }
}

namespace {
// Short texts are brought together, so that there is enough to do side by side.
constexpr int64_t GROUP_BYTES = 8 << 10;

void encode_run(const Vocabulary& vocabulary, const View* texts, size_t count, const Draw& draw, uint64_t stream,
                Rooms& rooms, std::vector<int64_t>& ends, std::vector<uint32_t>& ids, int64_t* counts) {
    for (size_t first = 0; first < count;) {
        ends.clear();
        int64_t bytes = 0;
        size_t last = first;
        do {
            bytes += texts[last].size;
            ends.push_back(bytes);
        } while (++last < count && bytes + texts[last].size <= GROUP_BYTES);
        const uint8_t* joined = texts[first].data;
        if (last - first > 1) {
            uint8_t* out = rooms.bytes(bytes);
            joined = out;
            for (size_t i = first; i < last; out += texts[i++].size)
                std::copy(texts[i].data, texts[i].data + texts[i].size, out);
        }
        encode(vocabulary, {joined, ends.data(), ends.size()}, draw, stream + first, rooms, ids, counts + first);
        first = last;
    }
}
}  // namespace

Runs encode_batch(const Vocabulary& vocabulary, const std::vector<View>& texts, const Draw& draw, uint64_t stream,
                  int threads, int64_t* counts) {
    Runs runs;
    int64_t bytes = RUN_BYTES;
    for (size_t i = 0; i < texts.size(); ++i) {
        if (bytes >= RUN_BYTES) {
            runs.first.push_back(i);
            bytes = 0;
        }
        bytes += texts[i].size + 16;
    }
    const size_t count = runs.first.size();
    runs.first.push_back(texts.size());
    runs.ids.resize(count);
    parallel_for(threads, static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end) {
        Rooms rooms;
        std::vector<int64_t> ends;
        for (int64_t run = begin; run < end; ++run) {
            const size_t first = runs.first[run];
            encode_run(vocabulary, texts.data() + first, runs.first[run + 1] - first, draw, stream + first, rooms, ends,
                       runs.ids[run], counts + first);
        }
    });
    return runs;
}

void gather(const Runs& runs, int threads, uint32_t* out) {
    std::vector<int64_t> start(runs.ids.size() + 1, 0);
    for (size_t run = 0; run < runs.ids.size(); ++run)
        start[run + 1] = start[run] + static_cast<int64_t>(runs.ids[run].size());
    parallel_for(threads, static_cast<int64_t>(runs.ids.size()), 16, [&](int64_t begin, int64_t end) {
        for (int64_t run = begin; run < end; ++run)
            if (!runs.ids[run].empty())
                std::memcpy(out + start[run], runs.ids[run].data(), runs.ids[run].size() * sizeof(uint32_t));
    });
}

}  // namespace lmlab::tokenize
