#include "reference.hpp"

namespace seqmix::test {

Matrixd product(const Matrixd& a, const Matrixd& b) { return a * b; }

Matrixd linear(const Matrixd& x, const Matrixd& weight, const Vectord& bias) {
  Matrixd y = x * weight.transpose();
  if (bias.size() > 0) y.rowwise() += bias.transpose();
  return y;
}

Matrixd map(const Matrixd& x, const std::function<double(double)>& f) { return x.unaryExpr(f); }

Matrixd head(const Matrixd& x, Index h, Index heads) {
  const Index width = x.cols() / heads;
  return x.middleCols(h * width, width);
}

void set_head(Matrixd& x, Index h, Index heads, const Matrixd& part) {
  const Index width = x.cols() / heads;
  x.middleCols(h * width, width) = part;
}

Matrixd rms_norm(const Matrixd& x, double eps, const Vectord& weight) {
  Matrixd y = x;
  for (Index t = 0; t < x.rows(); ++t) {
    y.row(t) /= std::sqrt(x.row(t).squaredNorm() / double(x.cols()) + eps);
    if (weight.size() > 0) y.row(t).array() *= weight.transpose().array();
  }
  return y;
}

Matrixd layer_norm(const Matrixd& x, double eps, const Vectord& weight, const Vectord& bias) {
  Matrixd y = x;
  for (Index t = 0; t < x.rows(); ++t) {
    y.row(t).array() -= x.row(t).mean();
    y.row(t) /= std::sqrt(y.row(t).squaredNorm() / double(x.cols()) + eps);
    if (weight.size() > 0) y.row(t).array() *= weight.transpose().array();
    if (bias.size() > 0) y.row(t) += bias.transpose();
  }
  return y;
}

Matrixd group_norm(const Matrixd& x, Index heads, double eps, const Vectord& weight, const Vectord& bias) {
  Matrixd y = x;
  for (Index h = 0; h < heads; ++h) set_head(y, h, heads, layer_norm(head(x, h, heads), eps));
  for (Index t = 0; t < x.rows(); ++t) {
    if (weight.size() > 0) y.row(t).array() *= weight.transpose().array();
    if (bias.size() > 0) y.row(t) += bias.transpose();
  }
  return y;
}

std::vector<double> softmax(const std::vector<double>& logits, double sink) {
  double largest = sink;
  for (const double logit : logits) largest = std::max(largest, logit);
  std::vector<double> weights(logits.size(), 0.0);
  if (largest == -std::numeric_limits<double>::infinity()) return weights;
  double sum = std::exp(sink - largest);
  for (std::size_t j = 0; j < logits.size(); ++j) sum += weights[j] = std::exp(logits[j] - largest);
  for (double& weight : weights) weight /= sum;
  return weights;
}

Matrixd rotate(const Matrixd& x, Index first, double theta, Index rotary_dim, bool interleaved) {
  Matrixd y = x;
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index m = 0; m < rotary_dim / 2; ++m) {
      const double angle = double(first + t) * std::pow(theta, -2.0 * double(m) / double(rotary_dim));
      const Index i = interleaved ? 2 * m : m, j = interleaved ? 2 * m + 1 : m + rotary_dim / 2;
      y(t, i) = x(t, i) * std::cos(angle) - x(t, j) * std::sin(angle);
      y(t, j) = x(t, j) * std::cos(angle) + x(t, i) * std::sin(angle);
    }
  }
  return y;
}

Matrixd shifted(const Matrixd& x) {
  Matrixd y = Matrixd::Zero(x.rows(), x.cols());
  if (x.rows() > 1) y.bottomRows(x.rows() - 1) = x.topRows(x.rows() - 1);
  return y;
}

}  // namespace seqmix::test
