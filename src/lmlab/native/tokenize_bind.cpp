// The Python face of the kernels of lmlab.tokenize: the submodule lmlab._native.tokenize.
// Arguments are checked by the Python side; text comes as str (read as UTF-8 in place) or bytes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "tokenize_batch.h"
#include "tokenize_corpus.h"
#include "tokenize_search.h"
#include "tokenize_train.h"

namespace nb = nanobind;
using namespace lmlab::tokenize;

namespace {

template <class T>
using Array = nb::ndarray<nb::numpy, T, nb::ndim<1>>;
template <class T>
using Input = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
Array<T> make_array(size_t size) {
    T* data = new T[size];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return Array<T>(data, {size}, owner);
}

template <class T>
Array<T> to_array(const std::vector<T>& values) {
    Array<T> array = make_array<T>(values.size());
    std::copy(values.begin(), values.end(), array.data());
    return array;
}

template <class T>
std::vector<T> to_vector(const Input<T>& array) {
    return std::vector<T>(array.data(), array.data() + array.size());
}
template <class T>
std::vector<T> to_vector(nb::handle array) {
    return to_vector(nb::cast<Input<T>>(array));
}

// The bytes of a text. A str keeps its UTF-8 form for as long as it lives, so the view needs no copy.
View view_of(nb::handle text) {
    Py_ssize_t size = 0;
    if (PyUnicode_Check(text.ptr())) {
        const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
        if (!data) throw nb::python_error();
        return {reinterpret_cast<const uint8_t*>(data), size};
    }
    char* data = nullptr;
    if (!PyBytes_Check(text.ptr()) || PyBytes_AsStringAndSize(text.ptr(), &data, &size) != 0)
        throw nb::type_error("text is not str or bytes");
    return {reinterpret_cast<const uint8_t*>(data), size};
}

View checked_view(nb::handle text, size_t index = 0) {
    const View view = view_of(text);
    if (view.size >= int64_t{1} << 31)
        throw nb::value_error(("text " + std::to_string(index) + " has 2^31 bytes or more: cut it").c_str());
    return view;
}

std::vector<View> views_of(nb::tuple texts) {
    std::vector<View> views(texts.size());
    for (size_t i = 0; i < views.size(); ++i) views[i] = checked_view(texts[i], i);
    return views;
}

Strings to_strings(nb::bytes joined, Input<int64_t> offsets) {
    Strings strings;
    strings.bytes.assign(joined.c_str(), joined.c_str() + joined.size());
    strings.offsets.assign(offsets.data(), offsets.data() + offsets.size());
    return strings;
}

nb::bytes to_bytes(View view) { return nb::bytes(reinterpret_cast<const char*>(view.data), view.size); }

// The ids as Python ints, all made at the first use and one after another: half the time of making a list of ids
// is making its ints, and the ids that are used most lie close together.
class Ints {
public:
    explicit Ints(size_t count) : made_(count, nullptr) {}
    // A function from an id to a new reference.
    auto make() {
        if (!made_.empty() && !made_.back())
            for (size_t i = 0; i < made_.size(); ++i)
                if (!made_[i] && !(made_[i] = PyLong_FromSize_t(i))) throw nb::python_error();
        return [made = made_.data()](uint32_t id) {
            Py_INCREF(made[id]);
            return made[id];
        };
    }
    Ints(const Ints&) = delete;
    Ints& operator=(const Ints&) = delete;
    ~Ints() {
        for (PyObject* made : made_) Py_XDECREF(made);
    }

private:
    std::vector<PyObject*> made_;
};

// A list of ids; `make` gives a new reference to an int.
template <class Make>
nb::object make_list(const uint32_t* ids, size_t count, Make&& make) {
    nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(count)));
    if (!list.is_valid()) throw nb::python_error();
    for (size_t i = 0; i < count; ++i) {
        PyObject* id = make(ids[i]);
#ifdef Py_LIMITED_API
        PyList_SetItem(list.ptr(), static_cast<Py_ssize_t>(i), id);
#else
        PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), id);
#endif
    }
    return list;
}

// Many lists at once would start the collector again and again, to find no cycles among ints.
class NoCollector {
public:
    NoCollector() : was_on_(PyGC_Disable()) {}
    NoCollector(const NoCollector&) = delete;
    NoCollector& operator=(const NoCollector&) = delete;
    ~NoCollector() {
        if (was_on_) PyGC_Enable();
    }

private:
    int was_on_;
};

template <class Make>
nb::object make_lists(Input<uint32_t> ids, Input<int64_t> offsets, Make&& make) {
    const NoCollector pause;
    const size_t count = offsets.size() - 1;
    nb::object lists = nb::steal(PyList_New(static_cast<Py_ssize_t>(count)));
    if (!lists.is_valid()) throw nb::python_error();
    for (size_t i = 0; i < count; ++i) {
        const int64_t start = offsets.data()[i];
        nb::object list = make_list(ids.data() + start, static_cast<size_t>(offsets.data()[i + 1] - start), make);
        PyList_SetItem(lists.ptr(), static_cast<Py_ssize_t>(i), list.release().ptr());
    }
    return lists;
}

// Of ids that belong to no vocabulary that is known.
nb::object to_lists(Input<uint32_t> ids, Input<int64_t> offsets) {
    return make_lists(ids, offsets, [](uint32_t id) {
        PyObject* made = PyLong_FromUnsignedLong(id);
        if (!made) throw nb::python_error();
        return made;
    });
}

constexpr int64_t QUICK = 4096;  // bytes that take less time than giving the interpreter's lock away is worth

// A vocabulary with the Python objects that belong to it.
class Core {
public:
    Core(nb::bytes joined, Input<int64_t> offsets, Input<double> scores)
        : vocabulary_(to_strings(joined, offsets), std::vector<double>(scores.data(), scores.data() + scores.size())),
          ints_(vocabulary_.scores.size()) {}

    nb::object to_lists(Input<uint32_t> ids, Input<int64_t> offsets) { return make_lists(ids, offsets, ints_.make()); }

    nb::object encode(nb::object text) { return encode_one(text, Draw{&vocabulary_.best()}, 0); }

    nb::object draw(nb::object text, double alpha, uint64_t seed, uint64_t stream, bool biased) {
        return encode_one(text, Draw{nullptr, vocabulary_.weights(alpha), seed, biased}, stream);
    }

    nb::tuple encode_batch(nb::tuple texts, int threads) { return batch(texts, Draw{&vocabulary_.best()}, 0, threads); }

    nb::tuple draw_batch(nb::tuple texts, double alpha, uint64_t seed, uint64_t stream, bool biased, int threads) {
        return batch(texts, Draw{nullptr, vocabulary_.weights(alpha), seed, biased}, stream, threads);
    }

    nb::bytes decode(Input<uint32_t> ids, bool skip_special) const {
        std::string joined;
        for (size_t i = 0; i < ids.size(); ++i) {
            const uint32_t id = ids.data()[i];
            if (skip_special && special(id)) continue;
            const View piece = vocabulary_.pieces[id];
            joined.append(reinterpret_cast<const char*>(piece.data), static_cast<size_t>(piece.size));
        }
        return nb::bytes(joined.data(), joined.size());
    }

    double log_partition(nb::object text, double alpha) {
        const View view = checked_view(text);
        const auto weights = vocabulary_.weights(alpha);
        nb::gil_scoped_release release;
        return backward_sums(vocabulary_.trie, weights->wide, view)[0].log();
    }

    nb::tuple marginals(nb::object text, double alpha) {  // expected counts by id, log Z
        const View view = checked_view(text);
        const auto weights = vocabulary_.weights(alpha);
        Array<double> counts = make_array<double>(vocabulary_.scores.size());
        std::fill(counts.data(), counts.data() + counts.size(), 0.0);
        double log_z;
        {
            nb::gil_scoped_release release;
            log_z = add_marginals(vocabulary_.trie, weights->wide, view, 1.0, counts.data());
        }
        return nb::make_tuple(counts, log_z);
    }

    nb::tuple lattice(nb::object text, double alpha) {  // start, end, id, probability of each edge
        const View view = checked_view(text);
        const auto weights = vocabulary_.weights(alpha);
        std::vector<Edge> found;
        {
            nb::gil_scoped_release release;
            found = edges(vocabulary_.trie, weights->wide, view);
        }
        Array<int64_t> start = make_array<int64_t>(found.size()), end = make_array<int64_t>(found.size());
        Array<uint32_t> id = make_array<uint32_t>(found.size());
        Array<double> probability = make_array<double>(found.size());
        for (size_t i = 0; i < found.size(); ++i) {
            start.data()[i] = found[i].start;
            end.data()[i] = found[i].end;
            id.data()[i] = found[i].id;
            probability.data()[i] = found[i].probability;
        }
        return nb::make_tuple(start, end, id, probability);
    }

    nb::list nbest(nb::object text, int64_t n) {
        const View view = checked_view(text);
        Paths paths;
        {
            nb::gil_scoped_release release;
            paths = n_best(vocabulary_.trie, vocabulary_.scores.data(), view, n);
        }
        return to_list(paths);
    }

    nb::list without_replacement(nb::object text, int64_t n, double alpha, uint64_t seed) {
        const View view = checked_view(text);
        const auto weights = vocabulary_.weights(alpha);
        Paths paths;
        {
            nb::gil_scoped_release release;
            Random random(seed, 0);
            paths = sample_without_replacement(vocabulary_.trie, weights->wide, view, n, random);
        }
        return to_list(paths);
    }

private:
    bool special(uint32_t id) const {
        return vocabulary_.scores[id] == -std::numeric_limits<double>::infinity();
    }

    nb::object encode_one(nb::object text, const Draw& draw, uint64_t stream) {
        const View view = checked_view(text);
        const Texts texts{view.data, &view.size, 1};
        std::vector<uint32_t> ids;
        int64_t count;
        if (view.size <= QUICK) {  // under the interpreter's lock: nobody else uses rooms_
            lmlab::tokenize::encode(vocabulary_, texts, draw, stream, rooms_, ids, &count);
        } else {
            nb::gil_scoped_release release;
            Rooms rooms;
            lmlab::tokenize::encode(vocabulary_, texts, draw, stream, rooms, ids, &count);
        }
        return make_list(ids.data(), ids.size(), ints_.make());
    }

    nb::tuple batch(nb::tuple texts, const Draw& draw, uint64_t stream, int threads) {
        const std::vector<View> views = views_of(texts);
        Array<int64_t> offsets = make_array<int64_t>(views.size() + 1);
        int64_t* ends = offsets.data();
        Runs runs;
        ends[0] = 0;
        {
            nb::gil_scoped_release release;
            runs = lmlab::tokenize::encode_batch(vocabulary_, views, draw, stream, threads, ends + 1);
            for (size_t i = 0; i < views.size(); ++i) ends[i + 1] += ends[i];
        }
        Array<uint32_t> ids = make_array<uint32_t>(static_cast<size_t>(ends[views.size()]));
        {
            nb::gil_scoped_release release;
            gather(runs, threads, ids.data());
        }
        return nb::make_tuple(ids, offsets);
    }

    nb::list to_list(const Paths& paths) {
        nb::list list;
        for (const auto& path : paths) list.append(make_list(path.data(), path.size(), ints_.make()));
        return list;
    }

    Vocabulary vocabulary_;
    Ints ints_;
    Rooms rooms_;  // for short texts, one at a time
};

Interrupt signals() {
    return Interrupt([] {
        nb::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
    });
}

Rules make_rules(nb::bytes boundaries, bool characters_whole, bool split_digits, int64_t max_piece_bytes) {
    Rules rules;
    for (size_t i = 0; i < boundaries.size(); ++i) rules.boundary[static_cast<uint8_t>(boundaries.c_str()[i])] = true;
    rules.characters_whole = characters_whole;
    rules.split_digits = split_digits;
    rules.max_piece_bytes = max_piece_bytes;
    return rules;
}

// The corpus and the trainer are one object in Python: the second only reads the first.
class Learner {
public:
    Learner(nb::bytes boundaries, bool characters_whole, bool split_digits, int64_t max_piece_bytes, int64_t budget,
            uint64_t seed)
        : corpus_(make_rules(boundaries, characters_whole, split_digits, max_piece_bytes), budget, seed) {}

    void add(nb::tuple texts, int64_t count) {
        const std::vector<View> views = views_of(texts);
        corpus_.texts += count;
        nb::gil_scoped_release release;
        for (View view : views) corpus_.add(view);
    }

    size_t seed(uint64_t min_count, size_t keep, int workers) {
        const Interrupt interrupt = signals();
        nb::gil_scoped_release release;
        corpus_.finish();
        trainer_ = std::make_unique<Trainer>(corpus_, find_seeds(corpus_, min_count, keep, workers, interrupt));
        return trainer_->size();
    }

    double step(bool soft, int workers) {
        const Interrupt interrupt = signals();
        nb::gil_scoped_release release;
        return trainer_->step(soft, workers, interrupt);
    }

    void drop_rare(double min_count) {
        nb::gil_scoped_release release;
        trainer_->drop_rare(min_count);
    }

    void prune(size_t target, bool likelihood, int workers) {
        const Interrupt interrupt = signals();
        nb::gil_scoped_release release;
        trainer_->prune(target, likelihood ? Pruning::likelihood : Pruning::compression, workers, interrupt);
    }

    void refill(size_t target) { trainer_->refill(target); }
    void start_counts() { trainer_->start_counts(); }

    void count(nb::tuple texts, int workers) {
        const std::vector<View> views = views_of(texts);
        const Interrupt interrupt = signals();
        nb::gil_scoped_release release;
        trainer_->count(views, workers, interrupt);
    }

    double finish_counts() { return trainer_->finish_counts(); }

    size_t size() const { return trainer_->size(); }
    int64_t bytes_read() const { return corpus_.bytes_read; }
    int64_t bytes_used() const { return corpus_.bytes_used; }
    int64_t texts() const { return corpus_.texts; }
    bool whole() const { return corpus_.whole(); }

    // The sample and the seeds, which stay as they are once `seed` is done; `restore` takes the same arrays.
    nb::dict sample() const {
        std::vector<uint32_t> sizes, counts;
        for (const Corpus::Chunk& chunk : corpus_.chunks()) {
            sizes.push_back(chunk.size);
            counts.push_back(chunk.count);
        }
        const auto& boundary = corpus_.boundary_counts();
        nb::dict arrays;
        arrays["bytes"] = to_array(corpus_.bytes());
        arrays["sizes"] = to_array(sizes);
        arrays["counts"] = to_array(counts);
        arrays["boundaries"] = to_array(std::vector<int64_t>(boundary.begin(), boundary.end()));
        arrays["read"] = to_array(std::vector<int64_t>{corpus_.bytes_read, corpus_.bytes_used, corpus_.texts});
        arrays["chance"] = to_array(std::vector<double>{corpus_.chance()});
        arrays["pieces"] = to_array(trainer_->all().bytes);
        arrays["offsets"] = to_array(trainer_->all().offsets);
        arrays["occurrences"] = to_array(trainer_->occurrences());
        return arrays;
    }

    nb::tuple state() const {  // members, counts, scores
        const Trainer::State state = trainer_->state();
        return nb::make_tuple(to_array(state.members), to_array(state.counts), to_array(state.scores));
    }

    void restore(nb::dict sample, Input<uint32_t> members, Input<double> counts, Input<double> scores) {
        const auto sizes = nb::cast<Input<uint32_t>>(sample["sizes"]), times = nb::cast<Input<uint32_t>>(sample["counts"]);
        std::vector<Corpus::Chunk> chunks;
        int64_t start = 0;
        for (size_t i = 0; i < sizes.size(); ++i) {
            chunks.push_back({start, sizes.data()[i], times.data()[i]});
            start += sizes.data()[i];
        }
        corpus_.restore(to_vector<uint8_t>(sample["bytes"]), std::move(chunks),
                        nb::cast<Input<int64_t>>(sample["boundaries"]).data(),
                        nb::cast<Input<double>>(sample["chance"]).data()[0]);
        const auto read = nb::cast<Input<int64_t>>(sample["read"]);
        corpus_.bytes_read = read.data()[0];
        corpus_.bytes_used = read.data()[1];
        corpus_.texts = read.data()[2];
        Strings all;
        all.bytes = to_vector<uint8_t>(sample["pieces"]);
        all.offsets = to_vector<int64_t>(sample["offsets"]);
        trainer_ = std::make_unique<Trainer>(
            corpus_, std::move(all), to_vector<uint64_t>(sample["occurrences"]),
            Trainer::State{to_vector(members), to_vector(counts), to_vector(scores)});
    }

    nb::tuple result() const {  // pieces, counts, scores
        nb::list pieces;
        std::vector<double> counts, scores;
        for (size_t i = 0; i < trainer_->size(); ++i) {
            pieces.append(to_bytes(trainer_->piece(i)));
            counts.push_back(trainer_->piece_count(i));
            scores.push_back(trainer_->score(i));
        }
        return nb::make_tuple(pieces, to_array(counts), to_array(scores));
    }

private:
    Corpus corpus_;
    std::unique_ptr<Trainer> trainer_;
};

}  // namespace

void bind_tokenize(nb::module_& m) {
    nb::class_<Core>(m, "Core")
        .def(nb::init<nb::bytes, Input<int64_t>, Input<double>>())
        .def("encode", &Core::encode)
        .def("draw", &Core::draw)
        .def("encode_batch", &Core::encode_batch)
        .def("draw_batch", &Core::draw_batch)
        .def("to_lists", &Core::to_lists)
        .def("decode", &Core::decode)
        .def("log_partition", &Core::log_partition)
        .def("marginals", &Core::marginals)
        .def("lattice", &Core::lattice)
        .def("nbest", &Core::nbest)
        .def("sample_without_replacement", &Core::without_replacement);
    nb::class_<Learner>(m, "Learner")
        .def(nb::init<nb::bytes, bool, bool, int64_t, int64_t, uint64_t>())
        .def("add", &Learner::add)
        .def("seed", &Learner::seed)
        .def("step", &Learner::step)
        .def("drop_rare", &Learner::drop_rare)
        .def("prune", &Learner::prune)
        .def("refill", &Learner::refill)
        .def("start_counts", &Learner::start_counts)
        .def("count", &Learner::count)
        .def("finish_counts", &Learner::finish_counts)
        .def("sample", &Learner::sample)
        .def("state", &Learner::state)
        .def("restore", &Learner::restore)
        .def("result", &Learner::result)
        .def_prop_ro("size", &Learner::size)
        .def_prop_ro("bytes_read", &Learner::bytes_read)
        .def_prop_ro("bytes_used", &Learner::bytes_used)
        .def_prop_ro("texts", &Learner::texts)
        .def_prop_ro("whole", &Learner::whole);
    m.def("to_lists", &to_lists);
    m.def("whole_characters", [](nb::bytes piece) { return whole_characters(view_of(piece)); });
}
