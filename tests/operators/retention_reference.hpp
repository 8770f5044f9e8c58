// Naive references of retention, from the equations, in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <seqmix/recurrent/multi_scale_retention.hpp>
#include <seqmix/recurrent/retention.hpp>

#include "support/reference.hpp"

namespace seqmix::test {

inline double gamma_of(Index h) { return 1 - std::pow(2.0, -5.0 - double(h)); }

/// The columns of x turned in pairs by position * f_i, where f_i is 10000^(-i / (pairs - 1)) for neighbouring columns
/// (torchscale; 1 for a single pair), and 10000^(-i / pairs) for the columns i and i + pairs (RoPE). Row t stands at
/// position first + t. The products of positions and both parts of a frequency are exact in long double.
inline Matrixd turn(const Matrixd& x, Index first, bool neighbours) {
  Matrixd y = x;
  const Index pairs = x.cols() / 2;
  for (Index i = 0; i < pairs; ++i) {
    const double frequency = neighbours ? (pairs == 1 ? 1.0 : std::pow(10000.0, -double(i) / double(pairs - 1)))
                                        : std::pow(10000.0, -2.0 * double(i) / double(x.cols()));
    const double high = double(float(frequency)), low = frequency - high;
    const Index a = neighbours ? 2 * i : i, b = neighbours ? 2 * i + 1 : i + pairs;
    for (Index t = 0; t < x.rows(); ++t) {
      using Long = long double;
      const Long large = Long(first + t) * high, small = Long(first + t) * low;
      const Long cosine = std::cos(large) * std::cos(small) - std::sin(large) * std::sin(small);
      const Long sine = std::sin(large) * std::cos(small) + std::cos(large) * std::sin(small);
      y(t, a) = double(x(t, a) * cosine - x(t, b) * sine);
      y(t, b) = double(x(t, b) * cosine + x(t, a) * sine);
    }
  }
  return y;
}

/// gamma^0 + ... + gamma^n.
inline double powers(double gamma, Index n) {
  double sum = 0;
  for (Index i = 0; i <= n; ++i) sum += std::pow(gamma, double(i));
  return sum;
}

/// One head of the recurrent form: M_t = gamma sqrt(s_{t-1} / s_t) M_{t-1} + k_t v_t^T / sqrt(s_t), o_t = q_t^T M_t.
inline Matrixd retain_recurrent(const Matrixd& q, const Matrixd& k, const Matrixd& v, double gamma) {
  Matrixd o(v.rows(), v.cols()), memory = Matrixd::Zero(k.cols(), v.cols());
  double scale = 0;
  for (Index t = 0; t < v.rows(); ++t) {
    const double next = gamma * scale + 1;
    memory = gamma * std::sqrt(scale / next) * memory + k.row(t).transpose() * v.row(t) / std::sqrt(next);
    o.row(t) = product(q.row(t), memory);
    scale = next;
  }
  return o;
}

/// One head of the parallel form, all pairs.
inline Matrixd retain_parallel(const Matrixd& q, const Matrixd& k, const Matrixd& v, double gamma) {
  Matrixd o = Matrixd::Zero(v.rows(), v.cols());
  for (Index t = 0; t < v.rows(); ++t) {
    double sum = 0;
    for (Index s = 0; s <= t; ++s) {
      const double a = q.row(t).dot(k.row(s)) * std::pow(gamma, double(t - s)) / std::sqrt(powers(gamma, t));
      sum += std::abs(a);
      o.row(t) += a * v.row(s);
    }
    o.row(t) /= std::min(std::max(sum, 1.0), 5e4);
  }
  return o;
}

/// One head of the chunkwise form.
inline Matrixd retain_chunkwise(const Matrixd& q, const Matrixd& k, const Matrixd& v, double gamma, Index chunk) {
  Matrixd o = Matrixd::Zero(v.rows(), v.cols()), memory = Matrixd::Zero(k.cols(), v.cols());
  const double whole = powers(gamma, chunk - 1);
  for (Index begin = 0; begin < v.rows(); begin += chunk) {
    double memory_scale = 1;
    for (Index j = 0; j < memory.cols(); ++j) memory_scale = std::max(memory_scale, memory.col(j).cwiseAbs().sum());
    const Index count = std::min(chunk, v.rows() - begin);
    for (Index i = 0; i < count; ++i) {
      double sum = 0;
      for (Index j = 0; j <= i; ++j) {
        const double a =
            q.row(begin + i).dot(k.row(begin + j)) * std::pow(gamma, double(i - j)) / std::sqrt(powers(gamma, i));
        sum += std::abs(a);
        o.row(begin + i) += a * v.row(begin + j);
      }
      o.row(begin + i) +=
          std::pow(gamma, double(i + 1)) * whole / std::sqrt(powers(gamma, i)) * product(q.row(begin + i), memory);
      o.row(begin + i) /= std::max({sum, 1.0, memory_scale});
    }
    if (count < chunk) break;
    memory *= std::pow(gamma, double(chunk));
    for (Index j = 0; j < chunk; ++j) {
      memory += k.row(begin + j).transpose() * v.row(begin + j) * std::pow(gamma, double(chunk - 1 - j)) / whole;
    }
  }
  return o;
}

inline Matrixd retention_layer(const Retention<double>::Config& config, const Retention<double>::Weights& weights,
                               const Matrixd& x) {
  const Index H = config.heads;
  const double scale = std::pow(double(config.channels / H), -0.5);
  const Matrixd q = linear(x, weights.query), k = scale * linear(x, weights.key), v = linear(x, weights.value);
  Matrixd mixed(v.rows(), v.cols());
  for (Index h = 0; h < H; ++h) {
    const Matrixd q_h = turn(head(q, h, H), config.start_position, true);
    const Matrixd k_h = turn(head(k, h, H), config.start_position, true);
    const Matrixd v_h = head(v, h, H);
    const Matrixd o = config.form == RetentionForm::recurrent ? retain_recurrent(q_h, k_h, v_h, gamma_of(h))
                      : config.form == RetentionForm::parallel
                          ? retain_parallel(q_h, k_h, v_h, gamma_of(h))
                          : retain_chunkwise(q_h, k_h, v_h, gamma_of(h), config.chunk);
    set_head(mixed, h, H, rms_norm(o, config.norm_eps));
  }
  const Matrixd gate = map(linear(x, weights.gate), config.gate == RetentionGate::swish ? silu : gelu);
  return linear(mixed.cwiseProduct(gate), weights.output);
}

inline Matrixd fla_layer(const MultiScaleRetention<double>::Config& config,
                         const MultiScaleRetention<double>::Weights& weights, const Matrixd& x) {
  const Index H = config.heads, shared = config.key_value_heads > 0 ? config.key_value_heads : H;
  const Matrixd q = linear(x, weights.query), k = linear(x, weights.key), v = linear(x, weights.value);
  const Index K = q.cols() / H, V = v.cols() / shared;
  Matrixd mixed(x.rows(), H * V);
  for (Index h = 0; h < H; ++h) {
    const Index source = h / (H / shared);
    const Matrixd q_h = turn(head(q, h, H), config.start_position, false);
    const Matrixd k_h = turn(head(k, source, shared), config.start_position, false);
    const Matrixd v_h = head(v, source, shared);
    Matrixd o = Matrixd::Zero(x.rows(), V), memory = Matrixd::Zero(K, V);
    for (Index t = 0; t < x.rows(); ++t) {
      memory = gamma_of(h) * memory + k_h.row(t).transpose() * v_h.row(t);
      o.row(t) = std::pow(double(K), -0.5) * product(q_h.row(t), memory);
    }
    set_head(mixed, h, H, rms_norm(o, config.norm_eps, weights.norm));
  }
  return linear(mixed.cwiseProduct(map(linear(x, weights.gate), silu)), weights.output);
}

}  // namespace seqmix::test
