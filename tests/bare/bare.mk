# tests/bare/bare.mk - included by the Makefile: the build where libraries are missing, said and not fatal. What is left is what
# a machine with a GPU has to prove: the goldens from `features` on, the kernels and their tests, the measurements. It lies in
# $(BUILD)/bare, as its objects fit no others. BARE=1: as if all were missing. Goals that install what is missing look again, in the
# make that they start then.
ifneq ($(filter deps demo test asan tsan bench soak quality quality-% fuzz format lint clean,$(MAKECMDGOALS)),)
MISSING :=
else ifeq ($(BARE),)
MISSING := $(strip $(shell for p in $(PKGS) cmocka; do pkg-config --exists $$p 2>/dev/null || echo $$p; done))
else
MISSING := $(PKGS) cmocka
endif
CMOCKA_CFLAGS := $(if $(filter cmocka,$(MISSING)),-Itests/bare/cmocka)
CMOCKA_LIBS   := $(if $(filter cmocka,$(MISSING)),,-lcmocka)
IS_BARE  := $(if $(filter-out cmocka,$(MISSING)),yes)

ifeq ($(IS_BARE),yes)
override BUILD := $(BUILD:%/bare=%)/bare
BARE_DIR := tests/bare
BARE_HAS := $(filter-out $(MISSING) $(if $(filter libpcre2-8 libutf8proc,$(MISSING)),libpcre2-8 libutf8proc),jansson libpcre2-8 libutf8proc)
SRC := $(foreach m,base comm kernels kvcache model prune,$(wildcard $(m)/*.c)) $(wildcard kernels/cpu/*.c) \
    $(addprefix scheduler/,scheduler.c work.c) $(addprefix media/,isa.c mel.c order.c plan.c resize.c) \
    $(addprefix engine/,accept.c decode.c defaults.c encode.c engine.c languages.c lists.c loop.c march.c media_cache.c memory.c request.c sample.c selector.c) \
    tests/bare/media.c $(if $(filter jansson,$(BARE_HAS)),,tests/bare/jansson/jansson.c)
SRC := $(filter-out $(PLUGIN_SRC) kernels/cpu/isa%.c,$(SRC))
PKG_CFLAGS = $(foreach p,jansson libpcre2-8 libutf8proc,$(if $(filter $(p),$(BARE_HAS)),$(shell pkg-config --cflags $(p)),-Itests/bare/$(p:lib%=%)))
LIBS       = $(foreach p,$(BARE_HAS),$(shell pkg-config --libs $(p))) -lm -ldl
endif
