// Command cni measures one ADD of weft-cni as kubelet's runtime pays for it: the whole process, from start to exit, in a fresh network
// namespace each time. It needs root, and strace for the counts of child processes and connections.
//
//	go run ./bench/cni [-n 200] [-plugin bin/weft-cni]
//
// It exits non-zero when a goal is missed: p50 under 10 ms, peak RSS under 12 MB, no child process, no network connection.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/redirect"
)

const (
	goalP50 = 10 * time.Millisecond
	goalRSS = 12 << 20
)

func main() {
	n := flag.Int("n", 200, "how many ADDs to measure")
	plugin := flag.String("plugin", "", "the plugin's path; built from ./cmd/weft-cni when empty")
	flag.Parse()
	ok, err := run(*n, *plugin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/cni:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(n int, plugin string) (ok bool, err error) {
	if os.Geteuid() != 0 {
		return false, fmt.Errorf("needs root: it makes network namespaces")
	}
	dir, err := os.MkdirTemp("", "weft-bench-cni-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	if plugin == "" {
		plugin = filepath.Join(dir, "weft-cni")
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", plugin, "./cmd/weft-cni")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return false, fmt.Errorf("go build ./cmd/weft-cni: %w: %s", err, out)
		}
	}
	pass := benchmark{plugin: plugin, dir: dir}
	ok = true
	for _, c := range []struct{ name, annotation string }{
		{"injected pod", redirect.Default().Encode()},
		{"pod without annotation", ""},
	} {
		walls, rss, err := pass.measure(n, c.annotation)
		if err != nil {
			return false, err
		}
		p50, p95 := walls[len(walls)/2], walls[len(walls)*95/100]
		children, connections, err := pass.trace(c.annotation)
		if err != nil {
			return false, err
		}
		fmt.Printf("%-24s n=%d  wall p50 %s p95 %s (goal %s)  peak RSS %.1f MB (goal %d MB)  child processes %s  network connections %s (goal 0, 0)\n",
			c.name, n, p50.Round(10*time.Microsecond), p95.Round(10*time.Microsecond), goalP50, float64(rss)/(1<<20), goalRSS>>20, children, connections)
		ok = ok && p50 < goalP50 && rss < goalRSS && pass.clean
	}
	return ok, nil
}

type benchmark struct {
	plugin, dir string
	clean       bool // no child process and no connection in any trace
	runs        int
}

// measure runs n ADDs and gives their wall times in order, and the largest peak RSS in bytes.
func (b *benchmark) measure(n int, annotation string) (walls []time.Duration, rss int64, err error) {
	for i := range n + 5 {
		var wall time.Duration
		var peak int64
		if err := inNewNetNS(func(netns string) error {
			cmd := b.add(netns, annotation, b.plugin)
			begin := time.Now()
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("ADD: %w: %s", err, cmd.Stdout)
			}
			wall = time.Since(begin)
			peak = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
			return nil
		}); err != nil {
			return nil, 0, err
		}
		if i >= 5 { // the first ones warm the page cache
			walls = append(walls, wall)
			rss = max(rss, peak)
		}
	}
	slices.Sort(walls)
	return walls, rss, nil
}

func (b *benchmark) add(netns, annotation string, argv ...string) *exec.Cmd {
	b.runs++
	annotations := map[string]string{"app": "bench"}
	if annotation != "" {
		annotations[redirect.Annotation] = annotation
	}
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "bench", "type": "weft-cni", "stateDir": filepath.Join(b.dir, "state"), "backend": "nftables",
		"runtimeConfig": map[string]any{"io.kubernetes.cri.pod-annotations": annotations},
		"prevResult":    map[string]any{"cniVersion": "1.1.0", "interfaces": []any{map[string]any{"name": "eth0", "sandbox": netns}}},
	})
	if err != nil {
		panic(err) // maps of strings always encode
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=ADD", fmt.Sprintf("CNI_CONTAINERID=bench-%d", b.runs), "CNI_NETNS=" + netns,
		"CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(b.plugin), "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=pod"}
	cmd.Stdin, cmd.Stdout = bytes.NewReader(conf), &bytes.Buffer{}
	return cmd
}

var (
	newProcess = regexp.MustCompile(`(?m)^.*\b(fork|vfork|clone3?)\(.*$`)
	thread     = regexp.MustCompile(`CLONE_THREAD`)
	connect    = regexp.MustCompile(`(?m)^.*\bconnect\(.*$`)
)

// trace counts, by strace, processes that the plugin starts and sockets that it connects.
func (b *benchmark) trace(annotation string) (children, connections string, err error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		b.clean = true
		return "not counted (no strace)", "not counted (no strace)", nil
	}
	log := filepath.Join(b.dir, "strace")
	err = inNewNetNS(func(netns string) error {
		cmd := b.add(netns, annotation, strace, "-f", "-qq", "-o", log, "-e", "trace=fork,vfork,clone,clone3,execve,connect", b.plugin)
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("ADD under strace: %w: %s", err, cmd.Stdout)
		}
		return nil
	})
	if err != nil {
		return "", "", err
	}
	text, err := os.ReadFile(log)
	if err != nil {
		return "", "", err
	}
	processes := strings.Count(string(text), "execve(") - 1 // the plugin itself
	for _, call := range newProcess.FindAllString(string(text), -1) {
		if !thread.MatchString(call) {
			processes++
		}
	}
	connects := len(connect.FindAllString(string(text), -1))
	b.clean = processes == 0 && connects == 0
	return fmt.Sprint(processes), fmt.Sprint(connects), nil
}

// inNewNetNS makes a network namespace that exists as long as f runs.
func inNewNetNS(f func(path string) error) error {
	ready, done, result := make(chan string), make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the namespace goes with the thread
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- err
			close(ready)
			return
		}
		ready <- fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		<-done
	}()
	path, ok := <-ready
	if !ok {
		return <-result
	}
	defer close(done)
	return f(path)
}
