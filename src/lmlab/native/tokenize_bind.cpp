// The Python face of the kernels of lmlab.tokenize: the submodule lmlab._native.tokenize.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_tokenize(nb::module_& m) { (void)m; }
