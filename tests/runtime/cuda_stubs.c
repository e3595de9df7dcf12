/* CUDA without a GPU: what ONNX Runtime's CUDA build needs to start. Memory is the host's, kernels compute nothing, and what is
   copied from the device is zero. test_cuda_stubs.py adds, for each other function that the build calls, one that returns 0,
   which is success.

   STUB_SET_DEVICE=N    the error of the first call that needs the driver, such as 35: it is too old
   STUB_INIT=N          the driver's error when it starts
   STUB_LAUNCH=N        the error of every kernel, such as 209: there is none for this GPU
   STUB_MEMORY=BYTES    the device's memory
   STUB_TENSOR_CORES=1  cuDNN has only plans that need tensor cores
   STUB_LOG=FILE        gets "copy BYTES" for each copy to the device and "plan" for each convolution that is planned

   Source: the references of the CUDA Runtime API 13 and of the backend API of cuDNN 9. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_OF_MEMORY = 2, DRIVER_TOO_OLD = 35, NO_KERNEL_IMAGE = 209 };
enum { HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2 };

static size_t setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static void note(const char *what, size_t size) {
    const char *name = getenv("STUB_LOG");
    FILE *file = name ? fopen(name, "a") : NULL;
    if (file) fprintf(file, what, size), fclose(file);
}

/* the device */

int cuInit(unsigned flags) { return setting("STUB_INIT", 0); }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cudaGetDeviceCount(int *count) { return *count = 1, 0; }
int cudaGetDevice(int *device) { return *device = 0; }
int cudaSetDevice(int device) { return setting("STUB_SET_DEVICE", 0); }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { return *value = 1024, 0; }

int cudaGetDeviceProperties(void *properties, int device) {
    struct { /* the beginning of cudaDeviceProp */
        char name[256], uuid[16], luid[8];
        unsigned luid_device_node_mask;
        size_t global_memory, shared_memory_per_block;
        int registers_per_block, warp_size;
        size_t pitch;
        int threads_per_block, threads_dim[3], grid_size[3];
        size_t constant_memory;
        int major, minor;
        size_t texture_alignment, texture_pitch_alignment;
        int multiprocessors;
    } stub = {.name = "stub", .shared_memory_per_block = 49152, .registers_per_block = 65536, .warp_size = 32,
              .threads_per_block = 1024, .threads_dim = {1024, 1024, 64}, .grid_size = {2147483647, 65535, 65535},
              .major = 9, .multiprocessors = 132};
    memcpy(properties, &stub, sizeof stub);
    return 0;
}

const char *cudaGetErrorName(int error) { return error == NO_KERNEL_IMAGE ? "cudaErrorNoKernelImageForDevice" : "cudaError"; }
const char *cudaGetErrorString(int error) {
    if (error == NO_KERNEL_IMAGE) return "no kernel image is available for execution on the device";
    return error == DRIVER_TOO_OLD ? "CUDA driver version is insufficient for CUDA runtime version" : "an error";
}

/* kernels */

static int last_error;

int cudaLaunchKernel(void) { return last_error = setting("STUB_LAUNCH", 0); }
int cudaLaunchKernelExC(void) { return cudaLaunchKernel(); }
int __cudaLaunchKernel(void) { return cudaLaunchKernel(); }
int cudaPeekAtLastError(void) { return last_error; }
int cudaGetLastError(void) {
    int error = last_error;
    return last_error = 0, error;
}

/* memory */

static size_t used;

int cudaMalloc(void **memory, size_t size) {
    if (used + size > setting("STUB_MEMORY", (size_t)1 << 34) || posix_memalign(memory, 256, size)) return OUT_OF_MEMORY;
    used += malloc_usable_size(*memory);
    return 0;
}

int cudaFree(void *memory) {
    used -= malloc_usable_size(memory);
    return free(memory), 0;
}

int cudaHostAlloc(void **memory, size_t size, unsigned flags) { return (*memory = malloc(size)) ? 0 : OUT_OF_MEMORY; }
int cudaFreeHost(void *memory) { return free(memory), 0; }

int cudaMemcpy(void *to, const void *from, size_t size, int direction) {
    if (direction == DEVICE_TO_HOST) return memset(to, 0, size), 0;
    if (direction == HOST_TO_DEVICE) note("copy %zu\n", size);
    return memmove(to, from, size), 0;
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int direction, void *stream) {
    return cudaMemcpy(to, from, size, direction);
}

/* cuDNN, which finds one plan for each convolution */

int cudnnCreate(void **handle) { return *handle = malloc(1), 0; }
size_t cudnnGetVersion(void) { return 91200; }
const char *cudnnGetErrorString(int status) { return "a status"; }
void cudnnGetLastErrorString(char *text, size_t size) { *text = 0; }
int cudnnBackendCreateDescriptor(int type, void **descriptor) { return *descriptor = malloc(1), 0; }

int cudnnBackendGetAttribute(void *of, int attribute, int type, long long wanted, long long *count, void *values) {
    enum { HEURISTIC_RESULTS = 202, ENGINE = 300, NUMERICAL_NOTES = 1303 };
    enum { INT64 = 3, INT32 = 23, TENSOR_CORE = 0 };
    int notes = attribute == NUMERICAL_NOTES && setting("STUB_TENSOR_CORES", 0);
    if (attribute == HEURISTIC_RESULTS && wanted) note("plan\n", 0);
    if (values && type == INT64) *(long long *)values = 0;
    if (values && (type == INT32 || notes)) *(int *)values = TENSOR_CORE; /* also the number 0 */
    if (count) *count = attribute == HEURISTIC_RESULTS || attribute == ENGINE || type == INT64 || type == INT32 || notes;
    return 0;
}
