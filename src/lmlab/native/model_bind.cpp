// The Python face of the kernels of lmlab.model: the submodule lmlab._native.model.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_model(nb::module_& m) { (void)m; }
