#include <seqmix/ssm/mamba2.hpp>

#include "support/recurrences.hpp"

namespace seqmix::bench {
namespace {

constexpr RecurrenceShape shape{.heads = 24, .key_dim = 128, .value_dim = 64, .groups = 1};

/// D of each head.
Token<const float> skips(const RecurrenceStreams& s) { return {s.bonus.data(), shape.heads}; }

/// A step of time, the betas taken for what softplus is given.
double step_of(const RecurrenceStreams& s, Index t, Index h) { return std::log1p(std::exp(double(s.beta(t, h)))); }

const bool registered =
    add_recurrence("mamba2",
                   {.call =
                        [](const RecurrenceStreams& s, Workspace& workspace) {
                          mamba2<float>(s.value, s.beta, s.key, s.query, {}, {.a = s.head_log_decay, .d = skips(s)},
                                        s.memory, s.output, workspace);
                        },
                    .work = shared_token_decay,
                    .log_decay = [](const RecurrenceStreams& s, Index t, Index h,
                                    Index) { return step_of(s, t, h) * double(s.head_log_decay[h]); },
                    .weight = step_of,
                    .skip = [](const RecurrenceStreams& s, Index h) { return double(skips(s)[h]); }},
                   shape);

}  // namespace
}  // namespace seqmix::bench
