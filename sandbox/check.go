package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/mesh/manifest"
	"github.com/weft-mesh/weft/sandbox/store"
)

// meshFault is a mistake in a mesh object, with its field for the line number.
type meshFault struct{ field, message string }

func (f meshFault) Error() string {
	if f.field == "" {
		return f.message
	}
	return f.field + ": " + f.message
}

// FieldPath is used by package api to find the line.
func (f meshFault) FieldPath() string { return f.field }

// checkMesh decodes a mesh object as weftd will, with the CRDs' schemas and CEL rules.
func checkMesh(o store.Object) (warnings []error, err error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	_, found, err := manifest.Decode(bytes.NewReader(b), "")
	for _, w := range found {
		warnings = append(warnings, meshFault{w.Field, w.Message})
	}
	var faults manifest.Errors
	if errors.As(err, &faults) {
		var out []error
		for _, f := range faults {
			out = append(out, meshFault{f.Field, f.Message})
		}
		return warnings, errors.Join(out...)
	}
	return warnings, err
}

// oldestKernel is the first with everything the sandbox and the plugin use
// (nftables NAT in both families of one kernel, pidfd, reject in any hook).
const oldestKernel = "5.10"

// CheckMachine says what this machine lacks: root, a kernel that is new enough.
func CheckMachine() error {
	if os.Geteuid() != 0 {
		return errors.New("a sandbox makes network namespaces and mounts: run it as root (sudo weft sandbox ...)")
	}
	if rel := kernelRelease(); older(rel, oldestKernel) {
		return fmt.Errorf("this kernel is %s; a sandbox needs %s or newer", rel, oldestKernel)
	}
	for _, ns := range []string{"net", "mnt", "pid", "ipc", "uts"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			return fmt.Errorf("this kernel has no %s namespaces, which a sandbox needs", ns)
		}
	}
	return nil
}

// HasIPv6 reports whether the kernel has IPv6 at all.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf")
	return err == nil
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// older compares the first two numbers of two kernel versions; an unreadable one is not older.
func older(have, want string) bool {
	h, okH := majorMinor(have)
	w, okW := majorMinor(want)
	return okH && okW && (h[0] < w[0] || (h[0] == w[0] && h[1] < w[1]))
}

func majorMinor(v string) (out [2]int, ok bool) {
	parts := strings.SplitN(v, ".", 3)
	if len(parts) < 2 {
		return out, false
	}
	for i := range out {
		digits := strings.TrimRightFunc(parts[i], func(r rune) bool { return r < '0' || r > '9' })
		n, err := strconv.Atoi(digits)
		if err != nil {
			return out, false
		}
		out[i] = n
	}
	return out, true
}

// inotifyPerProxy is how many inotify instances one Envoy holds (measured: Envoy 1.40, two workers).
const inotifyPerProxy = 3

// ProxyLimit is how many sidecars the kernel's limit of inotify instances for
// one user allows: all sidecars run as the same user, and Envoy crashes when it gets no instance.
// False when the limit cannot be read.
func ProxyLimit() (int, bool) {
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return n / inotifyPerProxy, err == nil
}
