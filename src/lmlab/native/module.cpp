// The one extension module, lmlab._native: a submodule for each room that has kernels.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_tokenize(nb::module_& m);
void bind_rope(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_recurrent(nb::module_& m);
void bind_losses(nb::module_& m);
void bind_model(nb::module_& m);
void bind_autophagy(nb::module_& m);

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // what lives to the end of the process is no leak worth a line to the user
    m.doc() = "Compiled kernels of lmlab. Not a public interface: use the rooms' own functions.";
    auto room = [&m](const char* name, void (*bind)(nb::module_&)) {
        nb::module_ sub = m.def_submodule(name);
        bind(sub);
    };
    room("tokenize", bind_tokenize);
    room("rope", bind_rope);
    room("attention", bind_attention);
    room("recurrent", bind_recurrent);
    room("losses", bind_losses);
    room("model", bind_model);
    room("autophagy", bind_autophagy);
}
