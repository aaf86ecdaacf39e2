// The Python face of the kernels of lmlab.recurrent: the submodule lmlab._native.recurrent.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_recurrent(nb::module_& m) { (void)m; }
