/* A stand-in for NVIDIA's libnvidia-ml.so.1: the few functions that the agent calls, with
   figures that a test sets. Two devices. Signatures as in NVIDIA's nvml.h. */
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15 };
enum { DEVICES = 2, EVENTS = 64 };

typedef struct { int lost, registered; unsigned temperature; int has_temperature;
                 unsigned long long ecc; int has_ecc; } device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { device_t *device; unsigned long long type, data; unsigned gi, ci; } event_t;

static device_t devices[DEVICES];
static event_t events[EVENTS];
static int waiting;

/* --- what tests steer --- */
void stub_reset(void) {
  memset(devices, 0, sizeof devices);
  waiting = 0;
  for (int i = 0; i < DEVICES; i++) {
    devices[i].temperature = 40; devices[i].has_temperature = 1; devices[i].has_ecc = 1;
  }
}
void stub_set(int i, int temperature, long long ecc) {
  devices[i].has_temperature = temperature >= 0; devices[i].temperature = (unsigned)temperature;
  devices[i].has_ecc = ecc >= 0; devices[i].ecc = (unsigned long long)ecc;
}
void stub_xid(int i, unsigned long long code) {
  if (devices[i].registered && waiting < EVENTS)
    events[waiting++] = (event_t){&devices[i], 8, code, 0, 0};
}
void stub_lose(int i) { devices[i].lost = 1; }

/* --- the library --- */
int nvmlInitWithFlags(unsigned flags) { (void)flags; return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stub"; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, device_t **out) {
  if (i >= DEVICES) return INVALID;
  *out = &devices[i];
  return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **out) {
  if (strncmp(uuid, "GPU-", 4)) return INVALID;
  unsigned i = (unsigned)atoi(uuid + 4);
  if (i >= DEVICES) return NOT_FOUND;
  *out = &devices[i];
  return OK;
}
int nvmlDeviceGetMemoryInfo(device_t *d, memory_t *out) {
  if (d->lost) return LOST;
  *out = (memory_t){80ULL << 30, 79ULL << 30, 1ULL << 30};
  return OK;
}
int nvmlDeviceGetTemperature(device_t *d, int sensor, unsigned *out) {
  if (sensor != 0) return INVALID;
  if (!d->has_temperature) return UNSUPPORTED;
  *out = d->temperature;
  return OK;
}
int nvmlDeviceGetTotalEccErrors(device_t *d, int type, int counter, unsigned long long *out) {
  if (type != 1 || counter != 0) return INVALID;
  if (!d->has_ecc) return UNSUPPORTED;
  *out = d->ecc;
  return OK;
}
int nvmlEventSetCreate(void **set) { *set = events; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(device_t *d, unsigned long long types, void *set) {
  if (types != 8 || set != events) return INVALID;
  d->registered = 1;
  return OK;
}
int nvmlEventSetWait_v2(void *set, event_t *out, unsigned timeout_ms) {
  (void)timeout_ms;
  if (set != events) return INVALID;
  if (!waiting) return TIMEOUT;
  *out = events[0];
  memmove(events, events + 1, sizeof *events * (size_t)--waiting);
  return OK;
}
