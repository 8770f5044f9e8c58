// Decays nearly too weak for a factor, the same at every token, in float: against a token loop in double, over a whole sequence
// and by single steps. Rounding has either sign, so that errors may grow with the root of the number of tokens.
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <seqmix/core/random.hpp>
#include <seqmix/linear/gated_delta_rule.hpp>
#include <seqmix/linear/gated_linear_attention.hpp>
#include <seqmix/linear/simple_gated_linear_attention.hpp>
#include <seqmix/recurrent/retention.hpp>
#include <seqmix/recurrent/rwkv7.hpp>
#include <vector>

namespace seqmix::test {
namespace {

constexpr Index dim = 8, block = 1000, early_length = 10000;
using Row = Eigen::Matrix<double, 1, dim>;
using Square = Eigen::Matrix<double, dim, dim>;

/// A block of tokens, [block, dim] each. Keys have unit length, and little of the memory is taken out at a time.
struct Tokens {
  explicit Tokens(float log_decay_given) : numbers(1 << 16) {
    for (float& x : numbers) x = float(rng.normal());
    query = key = value = removal = Matrix<float>(block, dim);
    beta.resize(block, 1);
    log_decay = Matrix<float>::Constant(block, dim, log_decay_given);
  }

  void next() {
    const auto row = [&] { return &numbers[std::size_t(rng.integer(0, Index(numbers.size()) - dim))]; };
    for (Index t = 0; t < block; ++t) {
      std::copy_n(row(), dim, query.row(t).data());
      std::copy_n(row(), dim, key.row(t).data());
      std::copy_n(row(), dim, value.row(t).data());
      key.row(t).normalize();
      beta(t, 0) = 0.01f * float(rng.uniform());
      removal.row(t) = -beta(t, 0) * key.row(t);
    }
  }

  Rng rng{7};
  std::vector<float> numbers;
  Matrix<float> query, key, value, log_decay, removal, beta;
};

struct Core {
  const char* name;
  int loop;  // of Loops
  void (*run)(const Tokens& tokens, Index begin, Index count, MemoryView<float> memory, HeadSequence<float> output,
              Workspace& workspace);
};

ConstHeadSequence<float> rows(const Matrix<float>& stream, Index begin, Index count) {
  return ConstSequence<float>(stream).rows(begin, count).heads(1);
}
ConstSequence<float> column(const Matrix<float>& stream, Index begin, Index count) {
  return ConstSequence<float>(stream).rows(begin, count).columns(0, 1);
}

const Core cores[] = {
    {"gated linear attention", 0,
     [](const Tokens& x, Index begin, Index count, MemoryView<float> memory, HeadSequence<float> output,
        Workspace& workspace) {
       gated_linear_attention<float>(rows(x.query, begin, count), rows(x.key, begin, count),
                                     rows(x.value, begin, count), rows(x.log_decay, begin, count), 1.0f, memory, output,
                                     workspace);
     }},
    {"simple gated linear attention", 0,
     [](const Tokens& x, Index begin, Index count, MemoryView<float> memory, HeadSequence<float> output,
        Workspace& workspace) {
       simple_gated_linear_attention<float>(rows(x.query, begin, count), rows(x.key, begin, count),
                                            rows(x.value, begin, count), column(x.log_decay, begin, count), 1.0f,
                                            memory, output, workspace);
     }},
    {"retention", 0,
     [](const Tokens& x, Index begin, Index count, MemoryView<float> memory, HeadSequence<float> output,
        Workspace& workspace) {
       retention<float>(rows(x.query, begin, count), rows(x.key, begin, count), rows(x.value, begin, count),
                        ConstToken<float>(x.log_decay.data(), 1), 1.0f, memory, output, workspace);
     }},
    {"gated delta rule", 1,
     [](const Tokens& x, Index begin, Index count, MemoryView<float> memory, HeadSequence<float> output,
        Workspace& workspace) {
       gated_delta_rule<float>(rows(x.query, begin, count), rows(x.key, begin, count), rows(x.value, begin, count),
                               column(x.log_decay, begin, count), column(x.beta, begin, count), 1.0f,
                               QueryKeyNorm::none, memory, output, workspace);
     }},
    {"rwkv7", 2,
     [](const Tokens& x, Index begin, Index count, MemoryView<float> memory, HeadSequence<float> output,
        Workspace& workspace) {
       rwkv7<float>(rows(x.query, begin, count), rows(x.key, begin, count), rows(x.value, begin, count),
                    rows(x.log_decay, begin, count), rows(x.removal, begin, count), rows(x.key, begin, count), memory,
                    output, workspace);
     }},
};

/// The equations, a token at a time: without removal, with the delta rule, and with a removal of low rank.
struct Loops {
  Square memory[3] = {Square::Zero(), Square::Zero(), Square::Zero()};

  void add(const Tokens& tokens, Index t) {
    const double factor = std::exp(double(tokens.log_decay(t, 0)));
    const Row k = tokens.key.row(t).cast<double>(), v = tokens.value.row(t).cast<double>();
    const Row removed = tokens.removal.row(t).cast<double>() * memory[2];
    for (Square& one : memory) one *= factor;
    const Row held = k * memory[1];
    memory[0] += k.transpose() * v;
    memory[1] += k.transpose() * (double(tokens.beta(t, 0)) * (v - held));
    memory[2] += k.transpose() * (removed + v);
  }
};

/// Errors are those of a block's outputs, relative to the largest of these.
void check(float log_decay, Index length, Index piece) {
  Tokens tokens(log_decay);
  Loops loops;
  Workspace workspace;
  std::vector<Matrix<float>> memories(std::size(cores), Matrix<float>::Zero(dim, dim));
  std::vector<Matrix<float>> given(std::size(cores), Matrix<float>(block, dim));
  std::vector<Matrix<double>> expected(3, Matrix<double>(block, dim));
  for (Index end = block; end <= length; end += block) {
    tokens.next();
    for (std::size_t i = 0; i < std::size(cores); ++i) {
      for (Index t = 0; t < block; t += piece) {
        cores[i].run(tokens, t, piece, MemoryView<float>(memories[i].data(), 1, dim, dim),
                     Sequence<float>(given[i]).rows(t, piece).heads(1), workspace);
      }
    }
    for (Index t = 0; t < block; ++t) {
      loops.add(tokens, t);
      for (int loop = 0; loop < 3; ++loop) {
        expected[std::size_t(loop)].row(t) = tokens.query.row(t).cast<double>() * loops.memory[loop];
      }
    }
    if (end != early_length && end != length) continue;
    const double bound = double(std::numeric_limits<float>::epsilon()) * std::sqrt(double(end));
    for (std::size_t i = 0; i < std::size(cores); ++i) {
      const Matrix<double>& exact = expected[std::size_t(cores[i].loop)];
      const double error = (given[i].cast<double>() - exact).cwiseAbs().maxCoeff() / exact.cwiseAbs().maxCoeff();
      INFO(cores[i].name << ", log decay " << log_decay << ", pieces of " << piece << ": error " << error << " at "
                         << end << " tokens");
      CHECK(error <= bound);
    }
  }
}

void check_all(Index length) {
  for (const float log_decay : {-2e-8f, -1e-7f, -1e-6f, -1e-4f}) {
    for (const Index piece : {block, Index(1)}) check(log_decay, length, piece);
  }
  // Less than half a unit in the last place of the memory for a whole piece, which must not be forgotten at its end.
  check(-3e-9f, length, Index(8));
}

TEST_CASE("weak decays of the linear recurrence are not lost in rounding") { check_all(100000); }

TEST_CASE("a weakly decaying memory that has become infinite stays so") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  Tokens tokens(-1e-7f);
  tokens.next();
  tokens.query.setOnes(), tokens.log_decay.col(1).setZero();
  Tensor<float> memory({1, dim, dim});
  memory.data()[0] = infinity, memory.data()[dim + 1] = -infinity;
  Matrix<float> y(block, dim);
  Workspace workspace;
  for (Index begin = 0; begin < block; begin += 250) {
    gated_linear_attention<float>(rows(tokens.query, begin, 250), rows(tokens.key, begin, 250),
                                  rows(tokens.value, begin, 250), rows(tokens.log_decay, begin, 250), 1.0f, memory,
                                  Sequence<float>(y).rows(begin, 250).heads(1), workspace);
  }
  CHECK((y.col(0).array() == infinity).all());
  CHECK((y.col(1).array() == -infinity).all());
  CHECK(y.rightCols(dim - 2).allFinite());
}

TEST_CASE("weak decays over a million tokens", "[.slow]") { check_all(1000000); }

}  // namespace
}  // namespace seqmix::test
