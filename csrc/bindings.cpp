// SPDX-License-Identifier: Apache-2.0
// The only file that knows Python: turns addresses and sizes into params structs. Arguments come positionally, in the
// order of the struct's fields, then the launch target. The lock is released while a kernel runs or is launched.
#include <pybind11/pybind11.h>

#include <map>
#include <string>

#include "core/check.h"
#if defined(SPECTRAL_EMULATE)
#include "core/device.cuh"
#endif
#include "ops/assemble.h"
#include "ops/crop_resize.h"
#include "ops/loss.h"
#include "ops/masking.h"
#include "ops/patchify.h"

namespace py = pybind11;
using namespace spectral;

#if !defined(SPECTRAL_MODULE)  // the tests build the same file under other names
#define SPECTRAL_MODULE _C
#endif

namespace {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// The arguments of a Cube, in its order. A macro, since a parameter list cannot be a value.
#define CUBE_ARGUMENTS                                                                                \
    int64_t B, int64_t C, int64_t H, int64_t W, int64_t stride_b, int64_t stride_c, int64_t stride_h, \
        int64_t stride_w, int64_t t, int64_t p, int64_t q
#define CUBE \
    Cube { B, C, H, W, stride_b, stride_c, stride_h, stride_w, t, p, q }

// Where a kernel runs: threads on the CPU, (device, stream) on CUDA. One binder serves both.
struct CpuTarget {
    template <class Params>
    static void run(void (*kernel)(const Params&, int), const Params& params, int num_threads) {
        const py::gil_scoped_release unlocked;
        kernel(params, num_threads);
    }
};

struct CudaTarget {
    template <class Params>
    static void run(void (*kernel)(const Params&, int, void*), const Params& params, int device, uintptr_t stream) {
        const py::gil_scoped_release unlocked;
        kernel(params, device, pointer<void>(stream));
    }
};

template <class Target, class Kernel, class... Where>
void bind_patchify(py::module_& m, const std::string& name, Kernel kernel, Type<void(Where...)>) {
    m.def(name.c_str(), [kernel](uintptr_t output, uintptr_t input, int64_t element_size, CUBE_ARGUMENTS,
                                 Where... where) {
        Target::run(kernel, PatchifyParams{pointer<void>(output), pointer<void>(input), element_size, CUBE}, where...);
    });
}

template <class Target, class Kernel, class... Where>
void bind_gather(py::module_& m, const std::string& name, Kernel kernel, Type<void(Where...)>) {
    m.def(name.c_str(), [kernel](uintptr_t output, uintptr_t input, uintptr_t ids_keep, int64_t num_keep,
                                 int64_t element_size, int dtype, CUBE_ARGUMENTS, Where... where) {
        const GatherParams params{pointer<void>(output),
                                  pointer<void>(input),
                                  pointer<int64_t>(ids_keep),
                                  num_keep,
                                  element_size,
                                  static_cast<Dtype>(dtype),
                                  CUBE};
        Target::run(kernel, params, where...);
    });
}

template <class Target, class Kernel, class... Where>
void bind_random_mask(py::module_& m, const std::string& name, Kernel kernel, Type<void(Where...)>) {
    m.def(name.c_str(),
          [kernel](uintptr_t ids_keep, uintptr_t ids_restore, uintptr_t mask, uintptr_t sample_ids, uintptr_t seed,
                   uintptr_t step, int64_t batch, int64_t num_tokens, int64_t num_keep, Where... where) {
              const RandomMaskParams params{pointer<int64_t>(ids_keep),
                                            pointer<int64_t>(ids_restore),
                                            pointer<bool>(mask),
                                            pointer<int64_t>(sample_ids),
                                            pointer<int64_t>(seed),
                                            pointer<int64_t>(step),
                                            batch,
                                            num_tokens,
                                            num_keep};
              Target::run(kernel, params, where...);
          });
}

template <class Target, class Kernel, class... Where>
void bind_noise_mask(py::module_& m, const std::string& name, Kernel kernel, Type<void(Where...)>) {
    m.def(name.c_str(),
          [kernel](uintptr_t ids_keep, uintptr_t ids_restore, uintptr_t mask, uintptr_t order, uintptr_t noise,
                   int dtype, int64_t batch, int64_t num_tokens, int64_t num_keep, Where... where) {
              const NoiseMaskParams params{pointer<int64_t>(ids_keep),
                                           pointer<int64_t>(ids_restore),
                                           pointer<bool>(mask),
                                           pointer<int64_t>(order),
                                           pointer<void>(noise),
                                           static_cast<Dtype>(dtype),
                                           batch,
                                           num_tokens,
                                           num_keep};
              Target::run(kernel, params, where...);
          });
}

template <class Target, class Kernel, class... Where>
void bind_loss(py::module_& m, const std::string& name, Kernel kernel, Type<void(Where...)>) {
    m.def(name.c_str(),
          [kernel](uintptr_t total, uintptr_t token, uintptr_t spectral, uintptr_t scale, uintptr_t gradient,
                   uintptr_t scratch, uintptr_t prediction, uintptr_t image, uintptr_t mask, uintptr_t valid,
                   uintptr_t token_weight, uintptr_t spectral_weight, int prediction_dtype, int image_dtype,
                   bool normalize_targets, bool spectral_raw, CUBE_ARGUMENTS, Where... where) {
              const LossParams params{pointer<void>(total),
                                      pointer<void>(token),
                                      pointer<void>(spectral),
                                      pointer<void>(scale),
                                      pointer<void>(gradient),
                                      pointer<double>(scratch),
                                      pointer<void>(prediction),
                                      pointer<void>(image),
                                      pointer<bool>(mask),
                                      pointer<bool>(valid),
                                      pointer<void>(token_weight),
                                      pointer<void>(spectral_weight),
                                      static_cast<Dtype>(prediction_dtype),
                                      static_cast<Dtype>(image_dtype),
                                      normalize_targets,
                                      spectral_raw,
                                      CUBE};
              Target::run(kernel, params, where...);
          });
}

template <class Target, class Kernel, class... Where>
void bind_loss_scale(py::module_& m, const std::string& name, Kernel kernel, Type<void(Where...)>) {
    m.def(name.c_str(), [kernel](uintptr_t gradient, uintptr_t grad_total, uintptr_t scale, int64_t count, int dtype,
                                 Where... where) {
        Target::run(kernel,
                    LossScaleParams{pointer<void>(gradient), pointer<void>(grad_total), pointer<void>(scale), count,
                                    static_cast<Dtype>(dtype)},
                    where...);
    });
}

template <class Target, class Kernel, class... Where>
void bind_assemble(py::module_& m, const std::string& name, Kernel kernel, Type<void(Where...)>) {
    m.def(name.c_str(), [kernel](uintptr_t output, uintptr_t visible, uintptr_t mask_token, uintptr_t positions,
                                 uintptr_t ids_restore, int output_dtype, int visible_dtype, int64_t batch,
                                 int64_t num_keep, int64_t num_tokens, int64_t channels, Where... where) {
        const AssembleParams params{pointer<void>(output),
                                    pointer<void>(visible),
                                    pointer<void>(mask_token),
                                    pointer<void>(positions),
                                    pointer<int64_t>(ids_restore),
                                    static_cast<Dtype>(output_dtype),
                                    static_cast<Dtype>(visible_dtype),
                                    batch,
                                    num_keep,
                                    num_tokens,
                                    channels};
        Target::run(kernel, params, where...);
    });
}

template <class Target, class Kernel, class... Where>
void bind_assemble_backward(py::module_& m, const std::string& name, Kernel kernel, Type<void(Where...)>) {
    m.def(name.c_str(),
          [kernel](uintptr_t visible_grad, uintptr_t mask_grad, uintptr_t positions_grad, uintptr_t scratch,
                   uintptr_t grad, uintptr_t ids_restore, int grad_dtype, int visible_dtype, int64_t batch,
                   int64_t num_keep, int64_t num_tokens, int64_t channels, Where... where) {
              const AssembleBackwardParams params{pointer<void>(visible_grad),
                                                  pointer<void>(mask_grad),
                                                  pointer<void>(positions_grad),
                                                  pointer<void>(scratch),
                                                  pointer<void>(grad),
                                                  pointer<int64_t>(ids_restore),
                                                  static_cast<Dtype>(grad_dtype),
                                                  static_cast<Dtype>(visible_dtype),
                                                  batch,
                                                  num_keep,
                                                  num_tokens,
                                                  channels};
              Target::run(kernel, params, where...);
          });
}

template <class Target, class Kernel, class... Where>
void bind_crop_resize(py::module_& m, const std::string& name, Kernel kernel, Type<void(Where...)>) {
    m.def(name.c_str(), [kernel](uintptr_t output, uintptr_t pixels, uintptr_t layout, uintptr_t boxes, uintptr_t flips,
                                 uintptr_t offset, uintptr_t scale, uintptr_t scratch, int pixel_type, int pixel_dtype,
                                 int output_dtype, bool antialias, int64_t batch, int64_t bands, int64_t size,
                                 int64_t num_pixels, int64_t scratch_size, Where... where) {
        const CropResizeParams params{pointer<void>(output),
                                      pointer<void>(pixels),
                                      pointer<int64_t>(layout),
                                      pointer<int32_t>(boxes),
                                      pointer<bool>(flips),
                                      pointer<void>(offset),
                                      pointer<void>(scale),
                                      pointer<void>(scratch),
                                      static_cast<PixelType>(pixel_type),
                                      static_cast<Dtype>(pixel_dtype),
                                      static_cast<Dtype>(output_dtype),
                                      antialias,
                                      batch,
                                      bands,
                                      size,
                                      num_pixels,
                                      scratch_size};
        Target::run(kernel, params, where...);
    });
}

}  // namespace

PYBIND11_MODULE(SPECTRAL_MODULE, m) {
    m.doc() = "Native kernels of spectralgpt: addresses in, nothing returned. Call them through spectralgpt.ops.";
    py::register_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const spectral::IndexError& e) {
            py::set_error(PyExc_IndexError, e.what());
        }
    });
    m.def("build_info", [] {
        py::dict info;
        info["compiler"] = SPECTRAL_COMPILER;
        info["build_type"] = SPECTRAL_BUILD_TYPE;
        info["cuda"] = SPECTRAL_CUDA_VERSION;
        info["cuda_architectures"] = SPECTRAL_CUDA_ARCHITECTURES;
#if defined(_OPENMP)
        info["openmp"] = true;
#else
        info["openmp"] = false;
#endif
        return info;
    });
    m.def("reconstruction_loss_scratch",
          [](bool normalize_targets, CUBE_ARGUMENTS) { return reconstruction_loss_scratch(CUBE, normalize_targets); });
    m.def("assemble_scratch", assemble_scratch);
    m.def("crop_resize_scratch", crop_resize_scratch);

    const Type<void(int)> cpu;
    bind_patchify<CpuTarget>(m, "patchify3d_cpu", patchify3d_cpu, cpu);
    bind_patchify<CpuTarget>(m, "unpatchify3d_cpu", unpatchify3d_cpu, cpu);
    bind_gather<CpuTarget>(m, "gather_patchify3d_cpu", gather_patchify3d_cpu, cpu);
    bind_gather<CpuTarget>(m, "gather_patchify3d_backward_cpu", gather_patchify3d_backward_cpu, cpu);
    bind_random_mask<CpuTarget>(m, "random_cube_mask_cpu", random_cube_mask_cpu, cpu);
    bind_noise_mask<CpuTarget>(m, "cube_mask_from_noise_cpu", cube_mask_from_noise_cpu, cpu);
    bind_loss<CpuTarget>(m, "reconstruction_loss_cpu", reconstruction_loss_cpu, cpu);
    bind_loss_scale<CpuTarget>(m, "reconstruction_loss_scale_cpu", reconstruction_loss_scale_cpu, cpu);
    bind_assemble<CpuTarget>(m, "assemble_tokens_cpu", assemble_tokens_cpu, cpu);
    bind_assemble_backward<CpuTarget>(m, "assemble_tokens_backward_cpu", assemble_tokens_backward_cpu, cpu);
    bind_crop_resize<CpuTarget>(m, "crop_resize_cpu", crop_resize_cpu, cpu);
#if defined(SPECTRAL_EMULATE)
    m.def("set_schedule", emulation::set_schedule);
#endif
#if defined(SPECTRAL_CUDA)
    const Type<void(int, uintptr_t)> cuda;
    bind_patchify<CudaTarget>(m, "patchify3d_cuda", patchify3d_cuda, cuda);
    bind_patchify<CudaTarget>(m, "unpatchify3d_cuda", unpatchify3d_cuda, cuda);
    bind_gather<CudaTarget>(m, "gather_patchify3d_cuda", gather_patchify3d_cuda, cuda);
    bind_gather<CudaTarget>(m, "gather_patchify3d_backward_cuda", gather_patchify3d_backward_cuda, cuda);
    bind_random_mask<CudaTarget>(m, "random_cube_mask_cuda", random_cube_mask_cuda, cuda);
    bind_noise_mask<CudaTarget>(m, "cube_mask_from_noise_cuda", cube_mask_from_noise_cuda, cuda);
    bind_loss<CudaTarget>(m, "reconstruction_loss_cuda", reconstruction_loss_cuda, cuda);
    bind_loss_scale<CudaTarget>(m, "reconstruction_loss_scale_cuda", reconstruction_loss_scale_cuda, cuda);
    bind_assemble<CudaTarget>(m, "assemble_tokens_cuda", assemble_tokens_cuda, cuda);
    bind_assemble_backward<CudaTarget>(m, "assemble_tokens_backward_cuda", assemble_tokens_backward_cuda, cuda);
    bind_crop_resize<CudaTarget>(m, "crop_resize_cuda", crop_resize_cuda, cuda);
#endif
}
