// The Python face of the kernels of lmlab.losses: the submodule lmlab._native.losses.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_losses(nb::module_& m) { (void)m; }
