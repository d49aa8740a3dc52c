/* Fuzz target: the header of a tensor file. The first byte says how the rest is meant: 0 mod 2 a file as
 * it lies on disk; else a header to which the right length and a data size (two bytes) are added, so that
 * the JSON is reached. */
#include <stdlib.h>
#include <string.h>

#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err e;
    size_t n_tensors;
    if (size < 3) return 0;
    if (data[0] % 2 == 0) {
        tensor_files_check(data + 1, size - 1, size - 1, &n_tensors, &e);
        return 0;
    }
    const uint64_t n_data = (uint64_t)data[1] << 8 | data[2], head = size - 3;
    uint8_t *image = malloc(8 + head);
    if (image == NULL) return 0;
    memcpy(image, &head, 8);
    memcpy(image + 8, data + 3, head);
    tensor_files_check(image, 8 + head, 8 + head + n_data, &n_tensors, &e);
    free(image);
    return 0;
}
