# tests/gpu/gpu.mk - included by the Makefile: what `make gpu-check` (tests/gpu/check.py) builds and runs.
# DEVICE=simt: the same without a GPU. STAGE=name: one stage. T=name: kernel tests whose name holds it.
DEV_NAMES := $(filter-out test_cuda_simt,$(patsubst tests/kernels/%.c,%,$(wildcard tests/kernels/test_cuda_*.c)))
DEV_TESTS := $(DEV_NAMES:%=$(BUILD)/device/%)
WRAP      := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free
CUDART    := -L$(CUDA)/lib64 -Wl,-rpath,$(CUDA)/lib64 -lcudart

# The test of tests/kernels/device.c, on a runtime of its own.
$(BUILD)/tests/kernels/test_device: tests/kernels/test_device.c tests/kernels/device.c $(call obj_of,kernels)
	@echo "  TEST $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PKG_CFLAGS) $(CMOCKA_CFLAGS) -MMD -MP $(LDFLAGS) $(WRAP) -o $@ $(filter %.c %.o,$^) $(LIBS) $(CMOCKA_LIBS)

test-build: $(BUILD)/gpu_bench

gpu-check:
	@python3 tests/gpu/check.py --build "$(BUILD:%/bare=%)" $(if $(DEVICE),--device $(DEVICE)) $(if $(STAGE),--stage "$(STAGE)") \
	    $(if $(T),--filter "$(T)") $(if $(GOLDENS),--goldens "$(GOLDENS)")

# What the goldens' texts and media become, for a machine that lacks FFmpeg or PCRE2: to be taken there as build/gpu-pack.tar.gz.
gpu-pack: $(BUILD)/tests/golden
	@mkdir -p $(BUILD)/gpu-pack
	@$(BUILD)/tests/golden --make-pack $(BUILD)/gpu-pack $(patsubst %/checkpoint,%,$(wildcard tests/goldens/*/checkpoint)) | tail -1
	@tar -C $(BUILD) -czf $(BUILD)/gpu-pack.tar.gz gpu-pack; rm -r $(BUILD)/gpu-pack; du -h $(BUILD)/gpu-pack.tar.gz

gpu-programs: gpu-golden gpu-tests gpu-bench gpu-nccl gpu-said
# Not by `cuda`: that is a make of its own, which would compile the kernels beside this one.
GPU_SO    := $(if $(HAVE_LT),$(BUILD)/omnidrop-cuda.so)
gpu-golden: $(BUILD)/tests/golden $(GPU_SO)
BACKEND_TESTS := $(BUILD)/tests/kernels/test_table $(BUILD)/tests/kernels/test_steps $(BUILD)/tests/model/test_graphs
gpu-tests: $(DEV_TESTS) $(BACKEND_TESTS) $(GPU_SO)
gpu-bench: $(BUILD)/gpu_bench $(GPU_SO)
gpu-nccl: $(if $(wildcard $(CUDA)/include/nccl.h),$(BUILD)/omnidrop-nccl.so $(BUILD)/gpu_nccl) $(BUILD)/tests/golden $(GPU_SO)
gpu-simt-programs: gpu-simt-golden gpu-simt-tests gpu-simt-bench gpu-simt-nccl gpu-said
gpu-simt-golden: $(BUILD)/tests/golden $(BUILD)/tests/simt/omnidrop-cuda.so
gpu-simt-tests: $(patsubst %.c,$(BUILD)/%,$(wildcard tests/kernels/test_cuda_*.c)) $(BACKEND_TESTS)
gpu-simt-nccl: $(BUILD)/tests/golden $(BUILD)/tests/simt/omnidrop-nccl.so
gpu-simt-bench: $(BUILD)/gpu_bench $(BUILD)/tests/simt/omnidrop-cuda.so
gpu-said:
	@$(if $(MISSING),echo "  missing: $(MISSING)",:)

$(BUILD)/gpu_bench: tests/gpu/bench.c tests/bench/pool.c $(call obj_of,engine)
	@echo "  LINK $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PKG_CFLAGS) -MMD -MP $(LDFLAGS) -o $@ $(filter %.c %.o,$^) $(LIBS)

$(BUILD)/gpu_nccl: tests/gpu/nccl.c
	@echo "  LINK $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -isystem $(CUDA)/include -MMD -MP $(LDFLAGS) -o $@ $< $(CUDART) -ldl

# The tests of the kernels with what nvcc made of them; every launcher's name becomes a macro (tests/kernels/device.h).
$(BUILD)/device/launchers.h: kernels/cuda/kernels.h
	@mkdir -p $(@D); sed -nE 's/^status (cuda_[a-z0-9_]+)\(void \*stream, const (struct [a-z0-9_]+) .*/#define \1(stream, a, e) ON_DEVICE(\1, \2, a, e)/p' $< >$@
$(BUILD)/device/device.o: tests/kernels/device.c tests/kernels/device.h
	@echo "  CC   $<"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -c -o $@ $<
$(BUILD)/device/%: tests/kernels/%.c $(BUILD)/device/device.o $(CU_OBJ) $(call obj_of,kernels) | $(BUILD)/device/launchers.h
	@echo "  TEST $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PKG_CFLAGS) $(CMOCKA_CFLAGS) -DCUDA_ON_DEVICE -I$(BUILD)/device -MMD -MP $(LDFLAGS) \
	    $(WRAP) -o $@ $(filter %.c %.o,$^) $(LIBS) $(CMOCKA_LIBS) $(CUDART) -lstdc++

.PHONY: gpu-check gpu-pack gpu-programs gpu-golden gpu-tests gpu-bench gpu-nccl gpu-simt-programs gpu-simt-golden gpu-simt-tests \
    gpu-simt-bench gpu-simt-nccl gpu-said
