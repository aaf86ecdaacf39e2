// The Python face of the kernels of lmlab.rope: the submodule lmlab._native.rope.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_rope(nb::module_& m) { (void)m; }
