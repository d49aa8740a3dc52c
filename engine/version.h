/* engine/version.h - what --version says. */
#ifndef ENGINE_VERSION_H
#define ENGINE_VERSION_H

#define OMNIDROP_VERSION "0.1.0"

#endif
