// The Python face of the kernels of lmlab.attention: the submodule lmlab._native.attention.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_attention(nb::module_& m) { (void)m; }
