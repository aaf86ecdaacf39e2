// The Python face of the kernels of lmlab.autophagy: the submodule lmlab._native.autophagy.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_autophagy(nb::module_& m) { (void)m; }
