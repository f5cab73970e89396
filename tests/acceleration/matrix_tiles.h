/* Intel AMX in plain C, for processors without it: put in front of kernels.c, so that its tiles can be tested anywhere.
 * After the "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2, TDPBF16PS, TDPBUSD, TILELOADD.
 * Shapes are checked as the processor does: what would be an invalid instruction there ends the process here. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
static long granted(long number, ...) { return (void)number, 0; } /* Linux lets everybody use them */
#define syscall granted
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig emulated_loadconfig
#define _tile_release emulated_release
#define _tile_zero emulated_zero
#define _tile_loadd emulated_loadd
#define _tile_stored emulated_stored
#define _tile_dpbf16ps emulated_dpbf16ps
#define _tile_dpbusd emulated_dpbusd

static __thread struct {
    int configured, rows[8], bytes[8];
    uint8_t data[8][16][64];
} emulated;

static void must(int holds) {
    if (!holds) abort();
}

static void emulated_loadconfig(const void *config) {
    const uint8_t *from = config;
    must(from[0] == 1);
    for (int t = 0; t < 8; t++) {
        uint16_t bytes;
        memcpy(&bytes, from + 16 + 2 * t, 2);
        emulated.bytes[t] = bytes, emulated.rows[t] = from[48 + t];
        must(bytes <= 64 && from[48 + t] <= 16 && !bytes == !from[48 + t]);
    }
    memset(emulated.data, 0, sizeof emulated.data);
    emulated.configured = 1;
}

static void emulated_release(void) { emulated.configured = 0; }

static void emulated_zero(int t) {
    must(emulated.configured && emulated.rows[t]);
    memset(emulated.data[t], 0, sizeof emulated.data[t]);
}

static void emulated_loadd(int t, const void *from, long stride) {
    must(emulated.configured && emulated.rows[t]);
    memset(emulated.data[t], 0, sizeof emulated.data[t]);
    for (int r = 0; r < emulated.rows[t]; r++)
        memcpy(emulated.data[t][r], (const char *)from + r * stride, emulated.bytes[t]);
}

static void emulated_stored(int t, void *to, long stride) {
    must(emulated.configured && emulated.rows[t]);
    for (int r = 0; r < emulated.rows[t]; r++) memcpy((char *)to + r * stride, emulated.data[t][r], emulated.bytes[t]);
}

static void must_fit(int sum, int a, int b) {
    must(emulated.configured && emulated.rows[sum] == emulated.rows[a] && emulated.bytes[a] == 4 * emulated.rows[b]);
    must(emulated.bytes[sum] == emulated.bytes[b] && emulated.rows[b]);
}

static float from_bf16(const uint8_t *at) {
    uint16_t high;
    memcpy(&high, at, 2);
    uint32_t bits = (uint32_t)high << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void emulated_dpbf16ps(int sum, int a, int b) {
    must_fit(sum, a, b);
    for (int m = 0; m < emulated.rows[sum]; m++)
        for (int k = 0; k < emulated.rows[b]; k++)
            for (int n = 0; n < emulated.bytes[sum] / 4; n++) {
                float value;
                memcpy(&value, emulated.data[sum][m] + 4 * n, 4);
                for (int i = 0; i < 2; i++)
                    value += from_bf16(emulated.data[a][m] + 4 * k + 2 * i) * from_bf16(emulated.data[b][k] + 4 * n + 2 * i);
                memcpy(emulated.data[sum][m] + 4 * n, &value, 4);
            }
}

static void emulated_dpbusd(int sum, int a, int b) {
    must_fit(sum, a, b);
    for (int m = 0; m < emulated.rows[sum]; m++)
        for (int k = 0; k < emulated.rows[b]; k++)
            for (int n = 0; n < emulated.bytes[sum] / 4; n++) {
                int32_t value;
                memcpy(&value, emulated.data[sum][m] + 4 * n, 4);
                for (int i = 0; i < 4; i++)
                    value += (int)emulated.data[a][m][4 * k + i] * (int8_t)emulated.data[b][k][4 * n + i];
                memcpy(emulated.data[sum][m] + 4 * n, &value, 4);
            }
}
