// The multiple-choice knapsack by simulated annealing: one option of each slot, the sum of losses small, the sum of
// costs within the budget. Starts from each slot's first option. At every temperature `steps` times: a random option of
// a random slot is taken if the cost stays within the budget and the loss falls, or rises by d with probability
// exp(-d / temperature). While the cost is over the budget, every move that lowers it is taken. The answer is the best
// state visited within the budget; the last state where there was none.
//
// Random numbers are SplitMix64 from `seed`: one number a proposal (slot from its high half, option from its low half,
// each x * count >> 32), one more, in its upper 53 bits, where a move within the budget does not lower the loss. So a
// seed gives one answer everywhere.
#pragma once
#include "ops/problem.h"

namespace nybble {

struct AnnealArgs {
  const int64_t* cost;   // [O], >= 0, at most (2^63 - 1) / S
  const double* loss;    // [O], finite
  const int64_t* first;  // [S + 1], rising from 0 to O: the options of slot s are first[s] to first[s + 1] - 1
  int64_t budget;
  const double* temperature;  // [L], > 0
  int64_t steps;
  uint64_t seed;
  int64_t* choice;  // [S], out: index within the slot
  int64_t* state;   // [S], scratch
  int64_t S, L, O;
};

namespace cpu {
Status anneal_knapsack(const AnnealArgs&);
}
namespace cuda {
Status anneal_knapsack(const AnnealArgs&, Stream);
}

}  // namespace nybble
