// A model from Python in a process without it: libtorch, the library of the CPU ops, a package.
//
//   run_package _C.abi3.so schemas.txt model.pt2 x.bin y.bin 2 9 62 5
//
// x.bin and y.bin are raw float32, here of shape (2, 9, 62, 5) and of what the model makes of it.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/library.h>

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  if (argc < 7) throw std::runtime_error("run_package LIBRARY SCHEMAS PACKAGE X Y SIZES...");
  const std::vector<std::string> arguments(argv + 1, argv + argc);

  // What the ops take and give, as Python wrote it down; then their kernels.
  torch::Library ops(torch::Library::DEF, "strnn_cpu", std::nullopt, __FILE__, __LINE__);
  std::ifstream schemas(arguments[1]);
  if (!schemas) throw std::runtime_error(arguments[1] + ": cannot be read");
  for (std::string line; std::getline(schemas, line);) ops.def(line.c_str());
  if (!dlopen(arguments[0].c_str(), RTLD_NOW)) throw std::runtime_error(dlerror());

  std::vector<int64_t> sizes;
  for (size_t k = 5; k < arguments.size(); ++k) sizes.push_back(std::stoll(arguments[k]));
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  const at::Tensor x = at::from_file(arguments[3], false, count, at::kFloat).view(sizes);

  const c10::InferenceMode no_gradients;
  torch::inductor::AOTIModelPackageLoader model(arguments[2]);
  const at::Tensor y = model.run({x}).at(0).contiguous();
  std::ofstream(arguments[4], std::ios::binary)
      .write(static_cast<const char*>(y.const_data_ptr()),
             static_cast<std::streamsize>(y.nbytes()));
  std::cout << y.sizes() << '\n';
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
