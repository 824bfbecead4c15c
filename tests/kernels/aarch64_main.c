/* Calls a TVM kernel that is linked in, on tensors from a file, and writes all tensors' bytes after the call.
 *
 * In place of TVM's runtime: what a kernel's object asks of it, with parallel tasks one after the other.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

enum { MOST_TENSORS = 16, MOST_AXES = 8, TASKS = 3, ALIGNMENT = 64 };

typedef struct {
    void *sync_handle;
    int32_t num_task;
} Environment;

typedef int (*Lambda)(int task, Environment *environment, void *data);

int __tvm_ffi_main(void *handle, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result);

static void *aligned(size_t bytes) {
    void *memory = aligned_alloc(ALIGNMENT, (bytes / ALIGNMENT + 1) * ALIGNMENT);
    if (memory == NULL) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(2);
    }
    return memory;
}

static int launch(Lambda lambda, void *data, int wanted) {
    Environment environment = {NULL, wanted > 0 ? wanted : TASKS};
    for (int task = 0; task < environment.num_task; task++) {
        int failed = lambda(task, &environment, data);
        if (failed) return failed;
    }
    return 0;
}

static void *allocate(int device, int id, uint64_t bytes, int code, int bits) {
    (void)device, (void)id, (void)code, (void)bits;
    return aligned(bytes);
}

static int release(int device, int id, void *memory) {
    (void)device, (void)id;
    free(memory);
    return 0;
}

/* An object calls the runtime through these. */
int (*__TVMBackendParallelLaunch)(Lambda, void *, int) = launch;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    fprintf(stderr, "%s: ", kind);
    for (int32_t i = 0; i < count; i++) fputs(parts[i] ? parts[i] : "", stderr);
    fputc('\n', stderr);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
    TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

static void read_exactly(void *to, size_t bytes, FILE *file) {
    if (fread(to, 1, bytes, file) != bytes) {
        fprintf(stderr, "the input ends early\n");
        exit(2);
    }
}

/* A tensor in the file: dtype code, bits, axes (int32), sizes (int64), bytes. */
static size_t read_tensor(DLTensor *tensor, int64_t *shape, FILE *file) {
    int32_t header[3];
    read_exactly(header, sizeof header, file);
    if (header[2] > MOST_AXES) {
        fprintf(stderr, "%d axes are too many\n", header[2]);
        exit(2);
    }
    read_exactly(shape, (size_t)header[2] * sizeof *shape, file);
    size_t bytes = (size_t)header[1] / 8;
    for (int32_t axis = 0; axis < header[2]; axis++) bytes *= (size_t)shape[axis];
    memset(tensor, 0, sizeof *tensor);
    tensor->device.device_type = kDLCPU;
    tensor->dtype = (DLDataType){(uint8_t)header[0], (uint8_t)header[1], 1};
    tensor->ndim = header[2];
    tensor->shape = shape;
    tensor->data = aligned(bytes);
    read_exactly(tensor->data, bytes, file);
    return bytes;
}

int main(int count, char **words) {
    static DLTensor tensors[MOST_TENSORS];
    static int64_t shapes[MOST_TENSORS][MOST_AXES];
    static size_t sizes[MOST_TENSORS];
    TVMFFIAny arguments[MOST_TENSORS], result;
    FILE *in = count == 3 ? fopen(words[1], "rb") : NULL, *out = count == 3 ? fopen(words[2], "wb") : NULL;
    if (in == NULL || out == NULL) {
        fprintf(stderr, "usage: kernel INPUT OUTPUT\n");
        return 2;
    }
    int32_t given;
    read_exactly(&given, sizeof given, in);
    if (given > MOST_TENSORS) {
        fprintf(stderr, "%d tensors are too many\n", given);
        return 2;
    }
    memset(arguments, 0, sizeof arguments);
    memset(&result, 0, sizeof result);
    for (int32_t i = 0; i < given; i++) {
        sizes[i] = read_tensor(&tensors[i], shapes[i], in);
        arguments[i].type_index = kTVMFFIDLTensorPtr;
        arguments[i].v_ptr = &tensors[i];
    }
    if (__tvm_ffi_main(NULL, arguments, given, &result) != 0) return 1;
    for (int32_t i = 0; i < given; i++)
        if (fwrite(tensors[i].data, 1, sizes[i], out) != sizes[i]) return 2;
    return fclose(out) ? 2 : 0;
}
