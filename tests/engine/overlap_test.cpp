// Core functions refuse results that lie where one of their parameters does, and change nothing.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <seqmix/linear/lightning_attention.hpp>
#include <seqmix/linear/linear_attention.hpp>
#include <seqmix/recurrent/retention.hpp>
#include <seqmix/recurrent/rwkv5.hpp>
#include <seqmix/recurrent/rwkv6.hpp>
#include <seqmix/softmax/softmax_attention.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace seqmix::test {
namespace {

constexpr Index length = 4, heads = 2, dim = 4;

/// Streams, results and parameters in one piece of memory, so that any may lie on any other.
struct Pieces {
  std::vector<float> numbers = std::vector<float>(1000, 0.5f);
  float* at(Index begin) { return numbers.data() + begin; }

  HeadSequence<const float> query{at(0), length, heads, dim}, key{at(100), length, heads, dim},
      value{at(200), length, heads, dim};
  HeadSequence<float> output{at(300), length, heads, dim};
  MemoryView<float> memory{at(400), heads, dim, dim};
  Workspace workspace;

  /// "result: overlaps parameter" of the error, or nothing.
  template <class Call>
  std::string refusal(Call call) {
    try {
      call();
    } catch (const std::invalid_argument& error) {
      CHECK(std::all_of(numbers.begin(), numbers.end(), [](float x) { return x == 0.5f; }));
      const std::string message = error.what();
      return message.substr(message.find(": ") + 2);
    }
    return {};
  }
};

TEST_CASE("recurrences refuse parameters in their results") {
  Pieces p;
  const auto try_retention = [&](float* log_decay) {
    return p.refusal([&] {
      retention<float>(p.query, p.key, p.value, {log_decay, heads}, 1, p.memory, p.output, p.workspace);
    });
  };
  CHECK(try_retention(p.at(331)) == "output: overlaps log_decay in memory");
  CHECK(try_retention(p.at(431)) == "memory: overlaps log_decay in memory");

  const auto try_lightning = [&](float* log_decay) {
    return p.refusal([&] {
      lightning_attention<float>(p.query, p.key, p.value, {log_decay, heads}, 1, p.memory, p.output, p.workspace);
    });
  };
  CHECK(try_lightning(p.at(331)) == "output: overlaps log_decay in memory");
  CHECK(try_lightning(p.at(431)) == "memory: overlaps log_decay in memory");

  const auto try_rwkv5 = [&](float* log_decay, float* bonus) {
    return p.refusal([&] {
      rwkv5<float>(p.query, p.key, p.value, {log_decay, heads, dim}, {bonus, heads, dim}, p.memory, p.output,
                   p.workspace);
    });
  };
  CHECK(try_rwkv5(p.at(331), p.at(600)) == "output: overlaps log_decay in memory");
  CHECK(try_rwkv5(p.at(393), p.at(600)) == "memory: overlaps log_decay in memory");
  CHECK(try_rwkv5(p.at(600), p.at(293)) == "output: overlaps bonus in memory");
  CHECK(try_rwkv5(p.at(600), p.at(431)) == "memory: overlaps bonus in memory");

  const auto try_rwkv6 = [&](float* log_decay, float* bonus) {
    return p.refusal([&] {
      rwkv6<float>(p.query, p.key, p.value, {log_decay, length, heads, dim}, {bonus, heads, dim}, p.memory, p.output,
                   p.workspace);
    });
  };
  CHECK(try_rwkv6(p.at(331), p.at(600)) == "output: overlaps log_decay in memory");
  CHECK(try_rwkv6(p.at(431), p.at(600)) == "memory: overlaps log_decay in memory");
  CHECK(try_rwkv6(p.at(600), p.at(331)) == "output: overlaps bonus in memory");
  CHECK(try_rwkv6(p.at(600), p.at(431)) == "memory: overlaps bonus in memory");
}

TEST_CASE("linear attention refuses a sum of keys in its streams") {
  Pieces p;
  const auto try_key_sum = [&](float* key_sum) {
    return p.refusal([&] {
      linear_attention<feature_map::Elu1, float>(p.query, p.key, p.value, {}, p.memory, {key_sum, heads, dim}, p.output,
                                                 p.workspace);
    });
  };
  CHECK(try_key_sum(p.at(31)) == "key_sum: overlaps query in memory");
  CHECK(try_key_sum(p.at(131)) == "key_sum: overlaps key in memory");
  CHECK(try_key_sum(p.at(231)) == "key_sum: overlaps value in memory");
}

TEST_CASE("softmax attention refuses parameters in its output") {
  Pieces p;
  const auto try_options = [&](const SoftmaxAttentionOptions<float>& options) {
    return p.refusal([&] { softmax_attention<float>(p.query, p.key, p.value, options, p.output, p.workspace); });
  };
  const Token<const float> per_head(p.at(331), heads), per_key(p.at(331), length);
  CHECK(try_options({.alibi_slopes = per_head}) == "y: overlaps alibi_slopes in memory");
  CHECK(try_options({.sink = per_head}) == "y: overlaps sink in memory");
  CHECK(try_options({.key_bias = per_key}) == "y: overlaps key_bias in memory");
}

}  // namespace
}  // namespace seqmix::test
