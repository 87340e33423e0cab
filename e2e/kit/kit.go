// Package kit finds what tests run: the real Envoy, the reference CNI plugins,
// iptables and our own programs, all under bin/ of the checkout, where `make tools`
// puts them. It builds our programs itself when asked for them. It knows nothing of
// the mesh. Start with Program and Envoy.
package kit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// RepoRoot returns the directory that holds go.mod.
func RepoRoot(tb testing.TB) string {
	tb.Helper()
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		tb.Fatalf("no checkout around the test: %v", err)
	}
	return root
}

// Root skips the test unless it runs as root: network namespaces, kernel rules
// and other users' processes need it. CI runs as root.
func Root(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: it makes network namespaces; run it as `sudo make test`")
	}
}

// Envoy returns the path of the pinned Envoy ($ENVOY, else bin/envoy, fetched when missing).
func Envoy(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv("ENVOY"); path != "" {
		return path
	}
	path := filepath.Join(RepoRoot(tb), "bin", "envoy")
	once(tb, path, "e2e/kit/fetch-envoy.sh", path)
	return path
}

// CNIPlugins returns a directory with the reference plugins bridge, ptp, host-local, loopback and portmap.
func CNIPlugins(tb testing.TB) string {
	tb.Helper()
	dir := filepath.Join(RepoRoot(tb), "bin", "cni")
	once(tb, dir, "make", "bin/cni/portmap")
	return dir
}

// Program returns the path of bin/name, freshly built from cmd/name, samples/name or e2e/name.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	root := RepoRoot(tb)
	for _, parent := range []string{"cmd", "samples", "e2e"} {
		if _, err := os.Stat(filepath.Join(root, parent, name)); err == nil {
			path := filepath.Join(root, "bin", name)
			build(tb, path, "./"+parent+"/"+name)
			return path
		}
	}
	tb.Fatalf("no program %s under cmd, samples or e2e", name)
	return ""
}

// Netfilter puts iptables, ip6tables, their -save and -restore forms, and nft on the
// test's PATH: the machine's own when it has them, else Debian's, unpacked under bin/netfilter.
func Netfilter(tb testing.TB) {
	tb.Helper()
	_, noIptables := exec.LookPath("iptables-restore")
	_, noNft := exec.LookPath("nft")
	if noIptables == nil && noNft == nil {
		return
	}
	dir := filepath.Join(RepoRoot(tb), "bin", "netfilter")
	once(tb, filepath.Join(dir, "complete"), "e2e/kit/fetch-netfilter.sh", dir)
	setenv(tb, "PATH", filepath.Join(dir, "sbin")+":"+os.Getenv("PATH"))
	setenv(tb, "LD_LIBRARY_PATH", filepath.Join(dir, "lib"))
	setenv(tb, "XTABLES_LIBDIR", filepath.Join(dir, "xtables"))
}

func setenv(tb testing.TB, key, value string) {
	if t, ok := tb.(interface{ Setenv(string, string) }); ok {
		t.Setenv(key, value)
	}
}

var (
	mu   sync.Mutex
	done = map[string]error{}
)

// once runs the command in the checkout unless path exists; the outcome holds for the process.
func once(tb testing.TB, path, command string, args ...string) {
	tb.Helper()
	mu.Lock()
	defer mu.Unlock()
	if _, tried := done[path]; !tried {
		if _, err := os.Stat(path); err == nil {
			done[path] = nil
			return
		}
		done[path] = run(tb, command, args...)
	}
	if err := done[path]; err != nil {
		tb.Fatalf("%s is missing and could not be made (try `make tools`): %v", path, err)
	}
}

// build compiles pkg once per process, so that a test never runs yesterday's program.
func build(tb testing.TB, path, pkg string) {
	tb.Helper()
	mu.Lock()
	defer mu.Unlock()
	err, tried := done[path]
	if !tried {
		// Test binaries of several packages build the same program at the same time:
		// each writes its own file and renames it. One package may be tested on two clusters at once.
		tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
		err = run(tb, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", tmp, pkg)
		if err == nil {
			err = os.Rename(tmp, path)
		}
		done[path] = err
	}
	if err != nil {
		tb.Fatalf("go build %s: %v", pkg, err)
	}
}

func run(tb testing.TB, command string, args ...string) error {
	if filepath.Dir(command) != "." {
		command = filepath.Join(RepoRoot(tb), command)
	}
	cmd := exec.Command(command, args...)
	cmd.Dir = RepoRoot(tb)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Logf("%s %v:\n%s", command, args, out)
	}
	return err
}
