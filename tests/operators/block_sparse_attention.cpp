// Block-sparse attention: the core function, and a mixer made of it for the laws.
#include <algorithm>
#include <cmath>
#include <seqmix/core/mixer.hpp>
#include <seqmix/sparse/block_sparse_attention.hpp>

#include "support/golden.hpp"
#include "support/reference.hpp"
#include "support/registry.hpp"

namespace seqmix::test {
namespace {

// --- golden cases -----------------------------------------------------------------------------------------------------

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
    // Arrays without spare room: a sanitizer sees what is read behind their ends.
    const auto bits = [&](const char* name) {
      const auto values = golden.indices(name);
      std::vector<std::uint8_t> result(values.size());
      std::ranges::transform(values, result.begin(), [](Index bit) { return std::uint8_t(bit != 0); });
      return result;
    };
    blocks = bits("input.block_mask");
    if (golden.has("input.mask")) {
      padding = bits("input.mask");
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

// --- a mixer for the laws ---------------------------------------------------------------------------------------------

struct SelfConfig {
  Index heads = 1, head_dim = 1;
  Index block_rows = 16, block_columns = 256;
  Index period = 3;  ///< every period-th block is empty; the rows that it starves see nothing

  bool keeps(Index block_row, Index block_column) const { return (2 * block_row + block_column) % period != 1; }
};

/// The operator has no weights and no layer: here x is query, key and value at once.
template <std::floating_point T, Direction of>
class BlockSparseSelfAttention {
 public:
  using Scalar = T;
  using Config = SelfConfig;
  static constexpr std::string_view name = "block_sparse_attention";
  static constexpr Direction direction = of;

  struct Weights {
    static void visit(auto&, auto&&) {}
  };

  BlockSparseSelfAttention(const Config& config, const Weights&) : config_(config) {}
  static Weights random_weights(const Config&, Rng&) { return {}; }

  Index channels() const { return config_.heads * config_.head_dim; }
  void forward(ConstSequence<T> x, Sequence<T> y, Workspace& workspace) const {
    internal::expect_input_output<T>(name, channels(), x, y);
    const auto frame = workspace.frame();
    const auto blocks = [&](Index size) { return (x.length() + size - 1) / size; };
    const Index rows = blocks(config_.block_rows), columns = blocks(config_.block_columns);
    const auto mask = workspace.take<std::uint8_t>(rows * columns);
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < columns; ++c) mask[std::size_t(r * columns + c)] = std::uint8_t(config_.keeps(r, c));
    }
    const auto streams = x.heads(config_.heads);
    block_sparse_attention<T>(streams, streams, streams, {mask.data(), rows, columns},
                              {.block_rows = config_.block_rows,
                               .block_columns = config_.block_columns,
                               .causal = direction == Direction::causal},
                              y.heads(config_.heads), workspace);
  }

 private:
  Config config_;
};

template <Direction of>
struct BlockSparseTests {
  static constexpr const char* name =
      of == Direction::causal ? "block_sparse_attention" : "block_sparse_attention, bidirectional";
  template <class T>
  using Mixer = BlockSparseSelfAttention<T, of>;

  template <class T>
  static std::vector<Configuration<Mixer<T>>> configurations(Rng& rng) {
    return {{"published blocks, head_dim 64", {.head_dim = 64}},
            {"single elements", {.heads = 3, .head_dim = 5, .block_rows = 1, .block_columns = 1}},
            {"every other block", {.heads = 2, .head_dim = 8, .block_rows = 3, .block_columns = 7, .period = 2}},
            {"random",
             {.heads = rng.integer(1, 4),
              .head_dim = rng.integer(1, 33),
              .block_rows = rng.integer(1, 40),
              .block_columns = rng.integer(1, 40),
              .period = rng.integer(2, 5)}}};
  }

  static Matrixd reference(const SelfConfig& config, const typename Mixer<double>::Weights&, const Matrixd& x) {
    Matrixd y(x.rows(), x.cols());
    for (Index h = 0; h < config.heads; ++h) {
      const Matrixd z = head(x, h, config.heads);
      Matrixd o = Matrixd::Zero(z.rows(), z.cols());
      for (Index i = 0; i < z.rows(); ++i) {
        std::vector<double> logits;
        std::vector<Index> kept;
        for (Index j = 0; j < (of == Direction::causal ? i + 1 : z.rows()); ++j) {
          if (!config.keeps(i / config.block_rows, j / config.block_columns)) continue;
          logits.push_back(z.row(i).dot(z.row(j)) / std::sqrt(double(config.head_dim)));
          kept.push_back(j);
        }
        const auto weights = softmax(logits);
        for (std::size_t n = 0; n < kept.size(); ++n) o.row(i) += weights[n] * z.row(kept[n]);
      }
      set_head(y, h, config.heads, o);
    }
    return y;
  }
};

const MixerRegistration<BlockSparseTests<Direction::causal>> causal_mixer;
const MixerRegistration<BlockSparseTests<Direction::bidirectional>> bidirectional_mixer;

}  // namespace
}  // namespace seqmix::test
