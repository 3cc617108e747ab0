"""Questions beyond one GEMM: attention, whole models, clusters, calibration."""
