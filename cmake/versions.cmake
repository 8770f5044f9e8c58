# The oldest versions that serve. Read by the build, by the probe that cmake/dependencies.sh runs, and by that script.
set(seqmix_version_Eigen3 3.4)
set(seqmix_version_xsimd 13)
set(seqmix_version_nlohmann_json 3.10)
set(seqmix_version_Catch2 3.4)
set(seqmix_version_benchmark 1.7)
set(seqmix_version_TBB 2021)
set(seqmix_version_OpenMP 3.0)
