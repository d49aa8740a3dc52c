# make            the engine: build/omnidrop          (release, no set-up: see `make deps`)
# make demo       set-up, build, then a real video file through the whole engine with the bundled model
# make test       set-up, build, every test; T=name runs those whose path holds name, SEED=n repeats a property test
# make asan       the tests under ASan and UBSan
# make tsan       calls between ranks, decoders of several ranks and groups of them under ThreadSanitizer; MODE=tsan builds any test so
# make bench      the measurements of docs/measurements, as ratios; writes build/bench.json
# make gpu-check  the CUDA backend on this machine's GPU: built, proven, measured in ten minutes (docs/cuda.md); STAGE=name, DEVICE=simt
# make gpu-pack   what gpu-check takes along to a machine without FFmpeg: build/gpu-pack.tar.gz
# make soak       a server under everything at once for SECONDS (1800); prints what it held and whether it lost anything
# make fuzz       the fuzz targets, FUZZ_SECONDS each (clang)
# make quality    answers under every pruning policy and budget, N questions of each group (300); docs/quality.md
# make format     clang-format in place;   make lint   clang-format check, clang-tidy, tidy rules
# make deps       install what is missing from the distribution (root, asks nothing)
# Variables: MODE=release|san|tsan|debug  BUILD=dir  WERROR=1  V=1

MODE    ?= release
BUILD   ?= $(if $(filter release,$(MODE)),build,build/$(MODE))
MODULES := base comm kernels kvcache media prune model scheduler engine api http cli
PKGS    := libavformat libavcodec libswscale libswresample libavutil jansson libpcre2-8 libutf8proc zlib libcurl libevent_core libevent_extra libevent_openssl openssl libseccomp

CC      := gcc
STD     := -std=gnu11 -D_GNU_SOURCE -I.
# -Wno-maybe-uninitialized: gcc does not see that a status of OK means that *out was written; fields that are not named are 0 on purpose.
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wno-maybe-uninitialized -Wno-missing-field-initializers $(if $(WERROR),-Werror)
OPT_release := -O2 -g
OPT_debug   := -Og -g
OPT_tsan    := -O1 -g -fsanitize=thread -fno-omit-frame-pointer
OPT_san     := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
CFLAGS  += $(STD) $(WARN) $(OPT_$(MODE)) -ffp-contract=off -fno-math-errno -pthread
# Header paths and libraries are asked for when a rule runs, so that `make deps` may install them first.
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   = $(shell pkg-config --libs $(PKGS) 2>/dev/null)
LDFLAGS += $(filter -fsanitize%,$(OPT_$(MODE))) -pthread
ALLOC    = $(if $(filter release,$(MODE)),$(shell pkg-config --libs jemalloc 2>/dev/null))
LIBS     = $(PKG_LIBS) -lhttp_parser $(ALLOC) -lm -ldl
Q       := $(if $(V),,@)

# One instruction set is one compilation of kernels/cpu/isa.c with its own flags (see kernels/cpu/cpu.h).
ISAS           := plain avx2 avx512 avx512bf16
ISA_FLAGS_plain      :=
ISA_FLAGS_avx2       := -mavx2 -mfma -mf16c
ISA_FLAGS_avx512     := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512
ISA_FLAGS_avx512bf16 := $(ISA_FLAGS_avx512) -mavx512bf16
ISA_OPT  = $(if $(filter san tsan,$(MODE)),-O1,-O3) -ffp-contract=fast

# comm/mpi.c and comm/nccl.c are shared objects beside the program, made where the library's headers are; see below.
PLUGIN_SRC := comm/mpi.c comm/nccl.c
SRC      := $(filter-out $(PLUGIN_SRC),$(foreach m,$(MODULES),$(wildcard $(m)/*.c))) $(filter-out kernels/cpu/isa%.c,$(wildcard kernels/cpu/*.c))
include tests/bare/bare.mk
ISA_SRC  := $(wildcard kernels/cpu/isa*.c)
ISA_OBJ  := $(foreach i,$(ISAS),$(patsubst kernels/cpu/%.c,$(BUILD)/kernels/cpu/%-$(i).o,$(ISA_SRC)))
OBJ      := $(SRC:%.c=$(BUILD)/%.o)
LIBOBJ   := $(filter-out $(BUILD)/cli/main.o,$(OBJ)) $(ISA_OBJ)

# Tests see the modules below their own and nothing above. tests/*.c are the runners golden, vectors, bench.
BELOW_base    := base
BELOW_comm    := base comm
BELOW_kernels := base kernels
BELOW_kvcache := base kernels kvcache
BELOW_media   := base media
BELOW_prune   := base kernels prune
BELOW_model   := base comm kernels media prune model
BELOW_scheduler := base kernels kvcache prune scheduler
BELOW_engine := base comm kernels kvcache media prune model scheduler engine
BELOW_api     := $(BELOW_engine) api
BELOW_http    := $(BELOW_api) http
BELOW_cli     := $(MODULES)
obj_of = $(filter $(foreach m,$(BELOW_$(1)) $(BARE_DIR),$(BUILD)/$(m)/%),$(LIBOBJ))

TEST_SRC := $(foreach m,$(MODULES),$(wildcard tests/$(m)/test_*.c))
TEST_BIN := $(TEST_SRC:%.c=$(BUILD)/%)
RUN_BIN  := $(BUILD)/tests/golden $(BUILD)/tests/vectors $(BUILD)/tests/cli/json_get $(BUILD)/tests/comm/ranks

# Ranks need an MPI (any that pkg-config or mpicc knows), NCCL the CUDA toolkit: without them there is one rank a program.
CUDA    ?= /usr/local/cuda
MPI_CFLAGS = $(shell pkg-config --cflags ompi-c 2>/dev/null || pkg-config --cflags mpich 2>/dev/null || mpicc --showme:compile 2>/dev/null)
MPI_LIBS   = $(shell pkg-config --libs ompi-c 2>/dev/null || pkg-config --libs mpich 2>/dev/null || mpicc --showme:link 2>/dev/null)
HAVE_MPI   = $(shell $(CC) -E $(MPI_CFLAGS) -include mpi.h -x c /dev/null >/dev/null 2>&1 && echo yes)
PLUGINS    = $(if $(HAVE_MPI),$(BUILD)/omnidrop-mpi.so) $(if $(and $(wildcard $(CUDA)/include/nccl.h),$(wildcard $(CUDA)/include/cuda_runtime_api.h)),$(BUILD)/omnidrop-nccl.so)

# The CUDA backend, omnidrop-cuda.so: kernels, which nvcc compiles for every GPU from the A100 on, and the ops table over them, which
# needs the runtime and cuBLASLt. The same sources are compiled for the CPU too, kernels over tests/kernels/simt.h and the table over
# tests/kernels/fake: that omnidrop-cuda.so in BUILD/tests/simt is what tests open (docs/cuda.md).
NVCC    ?= $(or $(wildcard $(CUDA)/bin/nvcc),$(shell command -v nvcc))
NVCC_FITS = $(if $(NVCC),$(shell $(NVCC) --list-gpu-code 2>/dev/null | grep -x sm_100))
CXX     := g++
CU_SRC  := $(wildcard kernels/cuda/*.cu)
CU_ARCHS ?= 80 86 89 90a
CU_DEFS  = $(if $(filter 90a,$(CU_ARCHS)),-DWITH_SM90A)
CU_OBJ  := $(CU_SRC:%.cu=$(BUILD)/%.o)
SIMT_OBJ := $(CU_SRC:%.cu=$(BUILD)/simt/%.o) $(BUILD)/simt/simt.o
CUDA_C  := $(wildcard kernels/cuda/*.c) base/err.c base/mem.c base/range.c base/threads.c
CUDA_H  := $(wildcard kernels/cuda/*.h base/*.h) kernels/ops.h
HAVE_LT  = $(and $(wildcard $(CUDA)/include/cublasLt.h),$(wildcard $(CUDA)/lib64/libcublasLt.so))
# Padding of arguments is no number, so that fake_cuda.cpp can tell addresses in them; nor is what a kernel forgot to set.
NO_LUCK := -ftrivial-auto-var-init=pattern
CXXSTD  := $(NO_LUCK) -std=c++17 -I. -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -Wall -Wextra $(if $(WERROR),-Werror)
# A register that spills, or an array that is not in registers, fails the build.
NVFLAGS := -std=c++17 -I. -O3 -lineinfo -Xcompiler -fPIC,-fvisibility=hidden -Xptxas -warn-spills,-warn-lmem-usage,-Werror

ifeq ($(IS_BARE),)
all: $(BUILD)/omnidrop plugins $(if $(filter release,$(MODE)),cuda)
else
all: $(BUILD)/tests/golden cuda
	@echo "  missing: $(MISSING)"; echo "  no program, no media, no server (make deps installs what they need); the goldens start at features: $<"
endif

# By name, since `make deps` may install the headers first.
plugins:
	@$(if $(strip $(PLUGINS)),$(MAKE) --no-print-directory $(PLUGINS),echo "  no MPI headers: one rank a program")

$(BUILD)/omnidrop-mpi.so: comm/mpi.c comm/inside.h comm/comm.h base/err.h
	@echo "  SO   $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(MPI_CFLAGS) -fPIC -shared -fvisibility=hidden -o $@ $< $(MPI_LIBS)

$(BUILD)/omnidrop-nccl.so: comm/nccl.c comm/inside.h comm/comm.h base/err.h
	@echo "  SO   $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -isystem $(CUDA)/include -fPIC -shared -fvisibility=hidden -o $@ $< -L$(CUDA)/lib64 -Wl,-rpath,$(CUDA)/lib64 -lnccl -lcudart

cuda:
	@$(if $(NVCC_FITS),$(MAKE) --no-print-directory $(CU_OBJ) $(if $(HAVE_LT),$(BUILD)/omnidrop-cuda.so),echo "  no nvcc from 12.8 on: no kernels for CUDA")
	@$(if $(and $(NVCC_FITS),$(if $(HAVE_LT),,no)),echo "  no cublasLt.h under $(CUDA): no omnidrop-cuda.so")

$(BUILD)/omnidrop-cuda.so: $(CUDA_C) $(CUDA_H) $(CU_OBJ)
	@echo "  SO   $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -isystem $(CUDA)/include -fPIC -shared -fvisibility=hidden -o $@ $(CUDA_C) $(CU_OBJ) -L$(CUDA)/lib64 \
	    -Wl,-rpath,$(CUDA)/lib64 -Wl,-z,defs -lcudart -lcublasLt -lstdc++ -lm

$(BUILD)/tests/simt/omnidrop-cuda.so: $(CUDA_C) $(CUDA_H) $(wildcard tests/kernels/fake/*.h) $(SIMT_OBJ) $(BUILD)/simt/fake_cuda.o
	@echo "  SO   $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(NO_LUCK) -Itests/kernels/fake -fPIC -shared -fvisibility=hidden -o $@ $(CUDA_C) $(SIMT_OBJ) $(BUILD)/simt/fake_cuda.o -lm

# comm/nccl.c over an NCCL of the tests, and MPI beside both, since OMNIDROP_LIB names one folder: ranks with a device each.
$(BUILD)/tests/simt/omnidrop-nccl.so: comm/nccl.c comm/inside.h comm/comm.h base/err.h tests/kernels/fake_nccl.c $(wildcard tests/kernels/fake/*.h tests/kernels/fake_*.h) $(BUILD)/tests/simt/omnidrop-cuda.so
	@echo "  SO   $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -Itests/kernels/fake -fPIC -shared -fvisibility=hidden -o $@ comm/nccl.c tests/kernels/fake_nccl.c -L$(@D) -l:omnidrop-cuda.so -Wl,-rpath,'$$ORIGIN'
	@ln -sf ../../omnidrop-mpi.so $(@D)/omnidrop-mpi.so

# The machine code of each GPU stays beside the object, for tests/tidy/test_machine_code.sh.
$(BUILD)/kernels/cuda/%.o: kernels/cuda/%.cu
	@echo "  NVCC $<"; rm -rf $(@:.o=.code); mkdir -p $(@:.o=.code)
	$(Q)$(NVCC) $(NVFLAGS) $(CU_DEFS) $(foreach a,$(CU_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) -gencode arch=compute_90,code=compute_90 \
	    --keep --keep-dir $(@:.o=.code) -MMD -MP -MF $(@:.o=.d) -c -o $@ $< && find $(@:.o=.code) -type f ! -name '*.cubin' -delete

$(BUILD)/simt/%.o: %.cu
	@echo "  SIMT $<"; mkdir -p $(@D)
	$(Q)$(CXX) $(CXXSTD) $(OPT_$(MODE)) -x c++ -include tests/kernels/simt.h -MMD -MP -c -o $@ $<

$(BUILD)/simt/%.o: tests/kernels/%.cpp
	@echo "  SIMT $<"; mkdir -p $(@D)
	$(Q)$(CXX) $(CXXSTD) $(OPT_$(MODE)) -MMD -MP -c -o $@ $<

# Sums of tensors between ranks are loops over floats.
$(BUILD)/comm/segment.o: CFLAGS += -O3

$(BUILD)/omnidrop: $(LIBOBJ) $(BUILD)/cli/main.o
	@echo "  LINK $@"; mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/%.o: %.c
	@echo "  CC   $<"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PKG_CFLAGS) -MMD -MP -c -o $@ $<

# What a file holds beside its own text: the page, the commit that /version names.
$(BUILD)/http/page.o: http/page/index.html
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
$(BUILD)/http/app.o: CFLAGS += -DOMNIDROP_COMMIT='"$(COMMIT)"'
$(BUILD)/http/app.o: $(BUILD)/commit-$(COMMIT)
# Ranks of another build are refused.
$(BUILD)/cli/ranks.o: CFLAGS += -DOMNIDROP_COMMIT='"$(COMMIT)"'
$(BUILD)/cli/ranks.o: $(BUILD)/commit-$(COMMIT)
$(BUILD)/commit-$(COMMIT):
	$(Q)mkdir -p $(@D); rm -f $(BUILD)/commit-*; touch $@

define isa_rule
$(BUILD)/kernels/cpu/%-$(1).o: kernels/cpu/%.c
	@echo "  CC   $$< ($(1))"; mkdir -p $$(@D)
	$(Q)$(CC) $(CFLAGS) $(ISA_OPT) $(ISA_FLAGS_$(1)) -DISA=$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach i,$(ISAS),$(eval $(call isa_rule,$(i))))

define test_rule
$(BUILD)/tests/$(1)/%: tests/$(1)/%.c $(call obj_of,$(1))
	@echo "  TEST $$@"; mkdir -p $$(@D)
	$(Q)$(CC) $(CFLAGS) $(PKG_CFLAGS) $(CMOCKA_CFLAGS) -MMD -MP $(LDFLAGS) -o $$@ $$(filter %.c %.o,$$^) $$(LIBS) $(CMOCKA_LIBS)
endef
$(foreach m,$(MODULES),$(eval $(call test_rule,$(m))))
# A service by script, in place of the engine's.
$(BUILD)/tests/api/test_fields $(BUILD)/tests/api/test_replies $(BUILD)/tests/api/test_live $(BUILD)/tests/api/test_groups: tests/api/fake_service.c tests/api/schema.c

# The CUDA kernels, compiled for the CPU.
$(patsubst %.c,$(BUILD)/%,$(wildcard tests/kernels/test_cuda_*.c)): $(SIMT_OBJ)
$(BUILD)/tests/kernels/test_cuda_simt: $(BUILD)/simt/tests/kernels/simt_bad.o
# The table over them, opened as the program opens it.
SIMT_TESTS := kernels/test_table kernels/test_steps model/test_graphs engine/test_device_lists engine/test_memory
$(SIMT_TESTS:%=$(BUILD)/tests/%): | $(BUILD)/tests/simt/omnidrop-cuda.so

# Ranks that are threads of the test, in place of comm/.
RANK_TESTS := test_ranks test_ranks_engine test_ranks_service
$(RANK_TESTS:%=$(BUILD)/tests/engine/%): $(BUILD)/tests/engine/%: tests/engine/%.c tests/engine/ranks.c tests/comm_threads.c $(filter-out $(BUILD)/comm/%,$(call obj_of,engine))
	@echo "  TEST $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PKG_CFLAGS) -MMD -MP $(LDFLAGS) -o $@ $(filter %.c %.o,$^) $(LIBS) $(CMOCKA_LIBS)

$(BUILD)/tests/golden: tests/golden.c $(call obj_of,engine)
$(BUILD)/tests/vectors: tests/vectors.c $(call obj_of,prune) $(BUILD)/model/safetensors.o $(BUILD)/model/prompt.o
$(BUILD)/tests/cli/json_get: tests/cli/json_get.c
$(BUILD)/tests/comm/ranks: tests/comm/ranks.c $(call obj_of,comm)
$(BUILD)/bench: $(wildcard tests/bench/*.c) $(LIBOBJ)
$(RUN_BIN) $(BUILD)/bench:
	@echo "  LINK $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PKG_CFLAGS) -MMD -MP $(LDFLAGS) -o $@ $(filter %.c %.o,$^) $(LIBS)

include tests/gpu/gpu.mk

deps:
	@tools/install-deps.sh

demo: deps
	@$(MAKE) --no-print-directory all $(BUILD)/tests/cli/json_get
	@tools/demo.sh $(BUILD)/omnidrop

test: deps
	-@tools/install-python.sh
	@tools/install-browser.sh
	@$(MAKE) --no-print-directory test-build
	@tests/run.sh $(BUILD) "$(T)"

test-build: all $(TEST_BIN) $(RUN_BIN) $(BUILD)/tests/simt/omnidrop-cuda.so $(BUILD)/tests/simt/omnidrop-nccl.so

asan: deps
	-@tools/install-python.sh
	@tools/install-browser.sh
	@$(MAKE) --no-print-directory MODE=san BUILD=build/san test-build
	@tests/run.sh build/san "$(T)"

TSAN := TSAN_OPTIONS=suppressions=tests/tsan.supp OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_hwloc_base_binding_policy=none
TSAN_TESTS := comm/test_self api/test_groups engine/test_ranks_engine
tsan: deps
	@$(MAKE) --no-print-directory MODE=tsan BUILD=build/tsan plugins $(addprefix build/tsan/tests/,$(TSAN_TESTS) comm/ranks)
	for t in $(TSAN_TESTS); do $(TSAN) build/tsan/tests/$$t || exit 1; done
	$(TSAN) mpirun -np 2 build/tsan/tests/comm/ranks calls

bench: deps
	@$(MAKE) --no-print-directory all $(BUILD)/bench $(BUILD)/tests/comm/ranks
	@$(BUILD)/bench --json $(BUILD)/bench.json

soak: deps
	@tools/install-python.sh
	@$(MAKE) --no-print-directory all
	@OMNIDROP=$(BUILD)/omnidrop build/venv/bin/python tests/soak/soak.py --seconds $(or $(SECONDS),1800)

# refresh: the committed figures and answers of a new model; reference: 200 clips through transformers. Both need PYTHON with torch.
quality quality-refresh quality-reference: deps
	@$(MAKE) --no-print-directory all
	@tools/quality/quality.sh $(BUILD)/omnidrop $(or $(patsubst quality-%,%,$(filter quality-%,$@)),study) $(N)

fuzz: deps
	@tests/fuzz/run.sh

C_FILES = $(shell git ls-files '*.c' '*.h')
format:
	clang-format -i $(C_FILES)

lint:
	@tools/lint.sh

clean:
	rm -rf build

.PHONY: all plugins cuda deps demo test test-build asan tsan bench soak quality quality-refresh quality-reference fuzz format lint clean
.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
