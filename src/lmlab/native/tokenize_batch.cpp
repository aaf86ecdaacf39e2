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
    made->wide = wide_weights(scores.data(), scores.size(), alpha);
    if (greatest <= WEIGHT_LOG_LIMIT) {
        std::vector<double> plain(scores.size());
        for (size_t i = 0; i < plain.size(); ++i) plain[i] = made->wide[i].value();
        made->units = trie.with_values(plain.data(), 0.0);
    }
    recent_.push_front(made);
    if (recent_.size() > WEIGHTS_KEPT) recent_.pop_back();
    return made;
}

void encode(const Vocabulary& vocabulary, View text, const Draw& draw, uint64_t stream, Scratch& scratch,
            std::vector<uint32_t>& ids) {
    if (text.size == 0) return;
    const Trie& trie = vocabulary.trie;
    if (!draw.weights) {
        trace(viterbi(trie.units.data(), text, scratch), trie.leaves.data(), text.size, ids);
        return;
    }
    Random random(draw.seed, stream);
    if (draw.biased)
        trace(viterbi_sampling(trie.units.data(), text, draw.weights->alpha, random, scratch), trie.leaves.data(),
              text.size, ids);
    else if (draw.weights->units.empty())
        sample_wide(trie, draw.weights->wide, text, random, ids);
    else
        sample(draw.weights->units.data(), trie.leaves.data(), text, random, scratch, ids);
}

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
        Scratch scratch;
        for (int64_t run = begin; run < end; ++run) {
            std::vector<uint32_t>& ids = runs.ids[run];
            for (size_t i = runs.first[run]; i < runs.first[run + 1]; ++i) {
                const size_t before = ids.size();
                encode(vocabulary, texts[i], draw, stream + i, scratch, ids);
                counts[i] = static_cast<int64_t>(ids.size() - before);
            }
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
