// Runs the cases that cases.py wrote through the CPU kernels, without torch and without Python, so
// that any compiler, emulator or sanitizer can: driver FILE [threads]. The instruction set is
// chosen as in the package (STRNN_CPU_CAPABILITY). Exits with 1 if a result is outside its bound.
//
// The file: lines of words, some followed by as many bytes as they say.
//   case NAME DTYPE B N D C H K CELL MEAN GROUPS SLOTS REVERSED_GROUPS REVERSED_SLOTS
//   in NAME BYTES               an input, under the name of its field in csrc/common
//   out NAME COUNT BOUND BYTES  an output of COUNT values; with what it must be, as doubles, or 0
//   call OP NAME...             runs an op on the inputs, and on the outputs so far, with these
//                               outputs; the other ones are not wanted
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/capability.h"

namespace {

using namespace strnn;

int num_threads = 1;

void run_in_parallel(int64_t num_workers, void (*body)(int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  for (int64_t worker = 1; worker < num_workers; ++worker)
    threads.emplace_back(body, worker, context);
  body(0, context);
  for (std::thread& thread : threads) thread.join();
}

// Memory of its exact size, so that a sanitizer sees each step beyond it.
struct Array {
  int64_t size = 0;
  std::unique_ptr<char[]> bytes;
  std::vector<double> expected;
  double bound = 0;

  explicit Array(int64_t n = 0) : size(n), bytes(new char[n]) { std::memset(bytes.get(), -1, n); }
};

double value(const Array& array, Dtype dtype, int64_t i) {
  const auto read = [&](auto s) {
    std::memcpy(&s, array.bytes.get() + i * sizeof s, sizeof s);
    return static_cast<double>(to_acc(s));
  };
  switch (dtype) {
    case Dtype::kFloat32:
      return read(float{});
    case Dtype::kFloat64:
      return read(double{});
    case Dtype::kBFloat16:
      return read(BFloat16{});
    default:
      return read(Half{});
  }
}

struct Case {
  std::string name, dtype_name;
  Dtype dtype;
  int64_t B, N, D, C, H, K, cell, mean, groups[2], slots[2];
  std::map<std::string, Array> arrays;
  std::vector<std::string> wanted;  // outputs of the call

  const void* in(const std::string& field) const {
    const auto found = arrays.find(field);
    return found == arrays.end() ? nullptr : found->second.bytes.get();
  }
  void* out(const std::string& field) {
    for (const std::string& name : wanted)
      if (name == field) return arrays.at(field).bytes.get();
    return nullptr;
  }
  // Of two directions each in memory of its own, of more in one piece.
  Directions directions(const std::string& field) {
    const auto found = arrays.find(field);
    if (found == arrays.end()) return {};
    const int64_t step = found->second.size / D;
    if (D != 2) return {found->second.bytes.get(), step};
    const char* apart[2];
    for (int d = 0; d < 2; ++d) {
      Array& part = arrays[field + " of " + std::to_string(d)] = Array(step);
      std::memcpy(part.bytes.get(), found->second.bytes.get() + d * step, step);
      apart[d] = part.bytes.get();
    }
    return {apart[0], reinterpret_cast<intptr_t>(apart[1]) - reinterpret_cast<intptr_t>(apart[0])};
  }

  void fill(Sweep& a, Program& program, const char* table, int reversed) {
    a = {B, N, D, C, H, K};
    a.x = in("x"), a.w_ih = directions("w_ih"), a.bias = directions("bias"),
    a.bias_hh = directions("bias_hh"), a.w_hh = directions("w_hh");
    a.mask = static_cast<const uint8_t*>(in("mask")), a.h0 = in("h0"), a.c0 = in("c0"),
    a.entry = static_cast<const int32_t*>(in("entry")), a.projection = in("projection");
    a.cell = static_cast<int>(cell), a.mean = mean != 0;
    program = Program::over(static_cast<const int32_t*>(in(table)), arrays.at(table).size / 4, N, D,
                            groups[reversed], slots[reversed]);
    if (!program.is_valid()) throw std::runtime_error(name + ": " + table + " is not valid");
  }

  void call(const std::string& op) {
    const cpu::Capability& kernels = cpu::capability();
    if (op == "sweep" || op == "training_sweep") {
      SweepForward a{};
      a.has_backward = op == "training_sweep";
      fill(a, a.program, "program", 0);
      a.gate = in("gate");
      a.h = out("h"), a.pre = out("pre"), a.s = out("s"), a.c = out("c"), a.h_n = out("h_n"),
      a.c_n = out("c_n"), a.saved = out("saved");
      kernels.sweep(a, dtype, num_threads, run_in_parallel);
    } else if (op == "sweep_backward") {
      SweepBackward a{};
      fill(a, a.program, "reversed_program", 1);
      a.h = in("h"), a.saved = in("saved"), a.dh = in("dh"), a.ds = in("ds"), a.dc = in("dc"),
      a.dh_n = in("dh_n"), a.dc_n = in("dc_n"), a.gate = in("gate"), a.pre = in("pre");
      a.dgate = out("dgate"), a.dx = out("dx"), a.dw_ih = out("dw_ih"), a.dbias = out("dbias"),
      a.dw_hh = out("dw_hh"), a.dh0 = out("dh0"), a.dc0 = out("dc0"),
      a.dprojection = out("dprojection");
      kernels.sweep_backward(a, dtype, num_threads, run_in_parallel);
    } else if (op == "sparse_projection") {
      kernels.sparse_projection({B, N, D, H, K, in("h"), in("weight"), out("s")}, dtype,
                                num_threads, run_in_parallel);
    } else if (op == "sparse_projection_backward") {
      kernels.sparse_projection_backward(
          {B, N, D, H, K, in("ds"), in("h"), in("weight"), out("dh"), out("dweight")}, dtype,
          num_threads, run_in_parallel);
    } else {
      throw std::runtime_error(name + ": no op is named " + op);
    }
  }

  // Results of the call that are outside their bounds.
  int wrong() const {
    int count = 0;
    for (const std::string& field : wanted) {
      const Array& array = arrays.at(field);
      double error = 0;
      for (size_t i = 0; i < array.expected.size(); ++i) {
        const double actual = value(array, dtype, i), expected = array.expected[i];
        if (actual == expected || (std::isnan(actual) && std::isnan(expected))) continue;
        const double off = std::abs(actual - expected);
        error = off <= error ? error : std::isnan(off) ? INFINITY : off;
      }
      if (error <= array.bound) continue;
      std::printf("%s, %s: %s is %.3g away from float64, at most %.3g is allowed\n", name.c_str(),
                  dtype_name.c_str(), field.c_str(), error, array.bound);
      ++count;
    }
    return count;
  }
};

int run(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  const std::map<std::string, Dtype> dtypes{{"float32", Dtype::kFloat32},
                                            {"float64", Dtype::kFloat64},
                                            {"bfloat16", Dtype::kBFloat16},
                                            {"float16", Dtype::kFloat16}};
  std::unique_ptr<Case> c;
  int cases = 0, results = 0, wrong = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string what, name;
    words >> what >> name;
    int64_t count = 0, bytes = 0;
    if (what == "case") {
      c = std::make_unique<Case>();
      c->name = name, ++cases;
      words >> c->dtype_name >> c->B >> c->N >> c->D >> c->C >> c->H >> c->K >> c->cell >> c->mean;
      words >> c->groups[0] >> c->slots[0] >> c->groups[1] >> c->slots[1];
      c->dtype = dtypes.at(c->dtype_name);
    } else if (what == "in") {
      words >> bytes;
      file.read((c->arrays[name] = Array(bytes)).bytes.get(), bytes);
    } else if (what == "out") {
      std::string bound;  // a stream reads neither "inf" nor a subnormal
      words >> count >> bound >> bytes;
      const int64_t sizes[] = {4, 8, 2, 2};
      Array& array = c->arrays[name] = Array(count * sizes[static_cast<int>(c->dtype)]);
      array.bound = std::strtod(bound.c_str(), nullptr);
      array.expected.resize(bytes / sizeof(double));
      file.read(reinterpret_cast<char*>(array.expected.data()), bytes);
    } else if (what == "call") {
      c->wanted.clear();
      for (std::string output; words >> output;) c->wanted.push_back(output);
      c->call(name);
      wrong += c->wrong();
      results += static_cast<int>(c->wanted.size());
    } else {
      throw std::runtime_error("no line starts with " + what);
    }
    if (words.bad() || !file) throw std::runtime_error("the file ends in: " + line);
  }
  std::printf("%s: %d cases, %d results, %d wrong\n", cpu::capability().name, cases, results,
              wrong);
  return cases == 0 || wrong != 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "driver FILE [threads]\n"), 2;
  if (argc > 2) num_threads = std::stoi(argv[2]);
  try {
    return run(argv[1]);
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "driver: %s\n", error.what()), 2;
  }
}
