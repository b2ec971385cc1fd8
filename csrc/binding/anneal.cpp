// anneal_knapsack: check, fill the arguments, call.
#include "ops/anneal.h"

#include <cmath>
#include <limits>

#include "binding/bindings.h"
#ifdef NYBBLE_CUDA
#include "binding/stream.h"
#endif

namespace nybble::binding {
namespace {

// On the CPU. The GPU's kernel looks for itself, and answers -1.
void check_values(const Check& check, const AnnealArgs& args, const Tensor& costs, const Tensor& losses,
                  const Tensor& levels) {
  for (int64_t s = 0; s < args.S; ++s) {
    check.that(args.first[s] >= 0 && args.first[s] < args.first[s + 1], "first does not rise from slot ", s,
               " to the next: every slot needs an option");
  }
  check.that(args.first[0] == 0 && args.first[args.S] == args.O, "first goes from ", args.first[0], " to ",
             args.first[args.S], ", expected 0 to the ", args.O, " options of cost");
  const int64_t largest = std::numeric_limits<int64_t>::max() / (args.S > 0 ? args.S : 1);
  check.each<int64_t>(costs, "cost", "0 to (2^63 - 1) / S", [&](int64_t c) { return c >= 0 && c <= largest; });
  check.each<double>(losses, "loss", "a finite number", [](double v) { return std::isfinite(v); });
  check.each<double>(levels, "temperature", "more than 0", [](double v) { return v > 0; });
}

template <typename Kernel>
Tensor anneal_knapsack(Check check, const Tensor& cost, const Tensor& loss, const Tensor& first, int64_t budget,
                       const Tensor& temperature, int64_t steps, int64_t seed, Kernel kernel) {
  AnnealArgs args{};
  check.type(cost, "cost", ScalarType::Long);
  check.shape(cost, "cost", {"O"});
  check.type(loss, "loss", ScalarType::Double);
  check.shape(loss, "loss", {"O"});
  check.type(first, "first", ScalarType::Long);
  check.shape(first, "first", {"S + 1"});
  check.type(temperature, "temperature", ScalarType::Double);
  check.shape(temperature, "temperature", {"L"});
  const Tensor costs = torch::stable::contiguous(cost), losses = torch::stable::contiguous(loss);
  const Tensor offsets = torch::stable::contiguous(first), levels = torch::stable::contiguous(temperature);

  args.O = check["O"];
  args.S = check["S + 1"] - 1;
  args.L = check["L"];
  check.that(args.S >= 0, "first is empty, expected one number more than there are slots");
  args.first = static_cast<const int64_t*>(offsets.data_ptr());
  if (cost.is_cpu()) check_values(check, args, costs, losses, levels);
  // Some seconds of work; a number beyond it is a mistake, and the call cannot be interrupted.
  constexpr int64_t most = int64_t{1} << 30;
  check.that(steps >= 0 && (args.L == 0 || steps <= most / args.L), "steps is ", steps, " at ", args.L,
             " temperatures, expected 0 to 2^30 proposals together");

  Tensor choice = torch::stable::new_empty(cost, {args.S});
  if (args.S == 0) return choice;
  const Scratch state(cost, args.S * int64_t{sizeof(int64_t)});
  args.cost = static_cast<const int64_t*>(costs.data_ptr());
  args.loss = static_cast<const double*>(losses.data_ptr());
  args.temperature = static_cast<const double*>(levels.data_ptr());
  args.budget = budget;
  args.steps = steps;
  args.seed = static_cast<uint64_t>(seed);
  args.choice = static_cast<int64_t*>(choice.data_ptr());
  args.state = static_cast<int64_t*>(state.data());
  check.done(kernel(args));
  return choice;
}

}  // namespace

Tensor anneal_knapsack_cpu(const Tensor& cost, const Tensor& loss, const Tensor& first, int64_t budget,
                           const Tensor& temperature, int64_t steps, int64_t seed) {
  return anneal_knapsack(Check("anneal_knapsack"), cost, loss, first, budget, temperature, steps, seed,
                         cpu::anneal_knapsack);
}

#ifdef NYBBLE_CUDA
Tensor anneal_knapsack_cuda(const Tensor& cost, const Tensor& loss, const Tensor& first, int64_t budget,
                            const Tensor& temperature, int64_t steps, int64_t seed) {
  const CudaScope scope(cost);
  return anneal_knapsack(Check("anneal_knapsack", true), cost, loss, first, budget, temperature, steps, seed,
                         [&](const AnnealArgs& args) { return cuda::anneal_knapsack(args, scope.stream()); });
}
#endif

}  // namespace nybble::binding
