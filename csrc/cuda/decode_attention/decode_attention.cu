// One query a head over a ring of keys and values: which kernel, how many parts of the slots; then the parts are
// joined.
#include "cuda/common/launch.cuh"
#include "cuda/decode_attention/ring.cuh"

namespace nybble::cuda {
namespace {

const ring::Kernel& choose(const DecodeAttentionArgs& a) { return ring::mma.supports(a) ? ring::mma : ring::plain; }

// Groups of query heads that blocks take.
int64_t groups_of(const DecodeAttentionArgs& a) {
  const int64_t heads = choose(a).heads_of_block(a);
  return a.B * a.Hk * ((a.H / a.Hk + heads - 1) / heads);
}

// Blocks of one group's slots: as many as run at once on the whole device, a tile or more each.
int64_t parts_of(const DecodeAttentionArgs& a) {
  const int64_t at_once = choose(a).blocks_at_once(a) * gpu().processors, tiles = (a.L + ring::kTile - 1) / ring::kTile;
  return std::max<int64_t>(1, std::min({at_once / groups_of(a), tiles, kMostParts}));
}

}  // namespace

int64_t decode_attention_scratch_bytes(const DecodeAttentionArgs& a) {
  return parts_bytes(a.B * a.H, parts_of(a), a.D);
}

Status decode_attention(const DecodeAttentionArgs& a, Stream stream) {
  const int64_t parts = parts_of(a);
  if (groups_of(a) > 0x7fffffff / parts) return {"decode_attention: more than 2^31 - 1 blocks"};
  const Parts memory = parts_at(a.scratch, a.B * a.H, parts, a.D);
  const Status started = choose(a).start(a, memory, static_cast<unsigned>(groups_of(a) * parts), stream);
  if (!started.ok() || parts == 1) return started;
  return join_parts(memory, a.o, a.dtype, a.B * a.H, a.D, stream);
}

}  // namespace nybble::cuda
