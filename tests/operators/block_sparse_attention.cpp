#include <seqmix/sparse/block_sparse_attention.hpp>

#include "support/golden.hpp"

namespace seqmix::test {
namespace {

template <class T>
struct BlockSparseAttentionCoreGolden final : GoldenRunner<T> {
  explicit BlockSparseAttentionCoreGolden(GoldenCase& golden) {
    GoldenConfig& config = golden.config();
    const Index heads = config.integer("heads"), head_dim = config.integer("head_dim");
    query = golden.array<T>("input.q", {-1, heads, head_dim});
    key = golden.array<T>("input.k", {query.size(0), heads, head_dim});
    value = golden.array<T>("input.v", {query.size(0), heads, -1});
    y = GoldenArray<T>({query.size(0), heads, value.size(2)});
    options.block_rows = config.integer("block_rows");
    options.block_columns = config.integer("block_cols");
    options.causal = config.boolean("causal", false);
    for (const Index bit : golden.indices("input.block_mask")) blocks.push_back(std::uint8_t(bit != 0));
    if (golden.has("input.mask")) {
      for (const Index bit : golden.indices("input.mask")) padding.push_back(std::uint8_t(bit != 0));
      options.padding = {padding.data(), Index(padding.size())};
    }
  }

  Index length() const override { return query.size(0); }
  bool stepwise() const override { return false; }
  void reset() override {
    for (Index i = 0; i < y.size(); ++i) y[i] = std::numeric_limits<T>::quiet_NaN();
    this->workspace.poison();
  }
  void run(Index, Index) override {
    const Index columns = (length() + options.block_columns - 1) / options.block_columns;
    const Sequence<const std::uint8_t> mask(std::span<const std::uint8_t>(blocks), columns);
    block_sparse_attention<T>(query.heads(), key.heads(), value.heads(), mask, options, y.heads(), this->workspace);
  }
  void collect(GoldenOutputs& outputs) const override { outputs.add("y", y); }

 private:
  GoldenArray<T> query, key, value, y;
  std::vector<std::uint8_t> blocks, padding;
  BlockSparseAttentionOptions<T> options;
};

const GoldenRegistration<BlockSparseAttentionCoreGolden> core{"block_sparse_attention", "core"};

}  // namespace
}  // namespace seqmix::test
