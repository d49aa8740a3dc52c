/* base/plugin.h - shared objects of this program that are opened when they are wanted, so that it starts where the libraries
 * that they need are missing. */
#ifndef BASE_PLUGIN_H
#define BASE_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>

/* Symbol `symbol` of `file` ("omnidrop-cuda.so"): beside the program, in the folders above it (tests), in ../lib/omnidrop or ../lib,
 * or in the folder that the environment's OMNIDROP_LIB names, and then nowhere else. It stays open. shared: what it is linked with
 * sees each other's symbols. NULL: why has the loader's own words. */
const void *plugin_symbol(const char *file, const char *symbol, bool shared, char *why, size_t cap);

#endif
