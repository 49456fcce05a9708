/* Runs a compiled intrinsic under an emulator: reads cases, calls it between guard pages, writes what came out.
 *
 * usage: harness FUNCTION IN OUT
 * IN:  int32 cases, int32 arguments; for each case and argument: int32 ndim, type code, bits, 1; int64 shape[ndim]; data.
 *      The last argument is read and written, the others are read.
 * OUT: for each case: int32 status, then the last argument's data. Status: 0 right so far; 1 wrote outside a buffer;
 *      2 changed an input; 3 two runs differ.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct { int32_t type_index; uint32_t pad; union { int64_t i; double f; void *p; } v; } Any;
typedef struct { int32_t device_type, device_id; } DLDevice;
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType;
typedef struct {
  void *data; DLDevice device; int32_t ndim; DLDataType dtype; int64_t *shape, *strides; uint64_t byte_offset;
} DLTensor;
typedef int (*Kernel)(void *, const Any *, int32_t, Any *);

/* What the code that TVM generates leans on: how it reports a bad argument. */
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < n; i++) if (parts[i]) fputs(parts[i], stderr);
  fputc('\n', stderr);
}
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *text) { fprintf(stderr, "%s: %s\n", kind, text); }
/* And where it keeps what it packs; filled, so that what is read before it is written is no zero by luck. */
void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  bytes = (bytes + 63) / 64 * 64;
  void *memory = aligned_alloc(64, bytes);
  return memory ? memset(memory, 0xFE, bytes) : 0;
}
int TVMBackendFreeWorkspace(int device, int id, void *memory) { (void)device, (void)id; free(memory); return 0; }
#define SLOT(n) extern void *__##n __attribute__((weak));
SLOT(TVMFFIErrorSetRaisedFromCStr) SLOT(TVMFFIErrorSetRaisedFromCStrParts)
SLOT(TVMBackendAllocWorkspace) SLOT(TVMBackendFreeWorkspace)
#define FILL(n) if (&__##n) __##n = (void *)&n

extern int __tvm_ffi_inside(void *, const Any *, int32_t, Any *) __attribute__((weak));
extern int __tvm_ffi_packed(void *, const Any *, int32_t, Any *) __attribute__((weak));
extern int __tvm_ffi_tight(void *, const Any *, int32_t, Any *) __attribute__((weak));

#define PAGE 4096
#define MOST 8
#define CANARY 0xA5

typedef struct { char *map, *data; size_t bytes, inner; } Buffer;
typedef struct { DLTensor tensor; char *original; size_t bytes; } Argument;

static void die(const char *what) { fprintf(stderr, "harness: cannot %s\n", what); exit(100); }
static void get(void *to, size_t n, FILE *f) { if (n && fread(to, 1, n, f) != n) die("read the cases"); }

/* A copy of the argument flush against the guard page behind it, or before it. */
static Buffer place(const Argument *a, int at_end) {
  Buffer b;
  b.bytes = a->bytes;
  b.inner = (a->bytes + PAGE - 1) / PAGE * PAGE + PAGE;
  b.map = mmap(0, b.inner + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (b.map == MAP_FAILED || mprotect(b.map + PAGE, b.inner, PROT_READ | PROT_WRITE)) die("map memory");
  memset(b.map + PAGE, CANARY, b.inner);
  size_t off = at_end ? (b.inner - a->bytes) / 64 * 64 : 0; /* TVM declares 64-byte alignment */
  b.data = b.map + PAGE + off;
  memcpy(b.data, a->original, a->bytes);
  return b;
}

static int damaged(const Buffer *b) {
  for (char *p = b->map + PAGE; p < b->data; p++) if ((unsigned char)*p != CANARY) return 1;
  for (char *p = b->data + b->bytes; p < b->map + PAGE + b->inner; p++) if ((unsigned char)*p != CANARY) return 1;
  return 0;
}

static int once(Kernel kernel, Argument *a, int n, int at_end, char *out) {
  Buffer b[MOST];
  Any packed[MOST], result = {0};
  int status = 0;
  memset(packed, 0, sizeof packed);
  for (int i = 0; i < n; i++) {
    b[i] = place(&a[i], at_end);
    a[i].tensor.data = b[i].data;
    packed[i].type_index = 7;
    packed[i].v.p = &a[i].tensor;
  }
  if (kernel(0, packed, n, &result)) die("call the function");
  for (int i = 0; i < n; i++) {
    if (damaged(&b[i])) status = 1;
    else if (!status && i < n - 1 && memcmp(b[i].data, a[i].original, a[i].bytes)) status = 2;
  }
  memcpy(out, b[n - 1].data, a[n - 1].bytes);
  for (int i = 0; i < n; i++) munmap(b[i].map, b[i].inner + 2 * PAGE);
  return status;
}

static void read_argument(Argument *a, FILE *f) {
  int32_t head[4];
  get(head, sizeof head, f);
  memset(a, 0, sizeof *a);
  a->tensor.ndim = head[0];
  a->tensor.dtype = (DLDataType){head[1], head[2], head[3]};
  a->tensor.device = (DLDevice){1, 0};
  a->tensor.shape = malloc(8 * head[0]);
  get(a->tensor.shape, 8 * head[0], f);
  a->bytes = head[2] / 8;
  for (int d = 0; d < head[0]; d++) a->bytes *= a->tensor.shape[d];
  a->original = malloc(a->bytes);
  get(a->original, a->bytes, f);
}

int main(int argc, char **argv) {
  if (argc != 4) die("start: harness FUNCTION IN OUT");
  const struct { const char *name; Kernel call; } known[] = {
    {"inside", __tvm_ffi_inside}, {"packed", __tvm_ffi_packed}, {"tight", __tvm_ffi_tight}};
  Kernel kernel = 0;
  for (int i = 0; i < 3; i++) if (!strcmp(argv[1], known[i].name)) kernel = known[i].call;
  FILE *in = fopen(argv[2], "rb"), *out = fopen(argv[3], "wb");
  if (!in || !out || !kernel) die("open the cases");
  FILL(TVMFFIErrorSetRaisedFromCStr);
  FILL(TVMFFIErrorSetRaisedFromCStrParts);
  FILL(TVMBackendAllocWorkspace);
  FILL(TVMBackendFreeWorkspace);
  int32_t counts[2];
  get(counts, sizeof counts, in);
  if (counts[1] > MOST) die("take so many arguments");
  for (int c = 0; c < counts[0]; c++) {
    Argument a[MOST];
    for (int i = 0; i < counts[1]; i++) read_argument(&a[i], in);
    Argument *last = &a[counts[1] - 1];
    char *first = malloc(last->bytes), *second = malloc(last->bytes);
    int32_t status = once(kernel, a, counts[1], 1, first);
    if (!status) status = once(kernel, a, counts[1], 0, second);
    if (!status && memcmp(first, second, last->bytes)) status = 3;
    if (fwrite(&status, 4, 1, out) != 1 || fwrite(first, 1, last->bytes, out) != last->bytes) die("write the answer");
    for (int i = 0; i < counts[1]; i++) { free(a[i].original); free(a[i].tensor.shape); }
    free(first);
    free(second);
  }
  if (fclose(out)) die("write the answer");
  return 0;
}
