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
	"errors"
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
		walls, err := pass.measure(n, c.annotation)
		if err != nil {
			return false, err
		}
		rss, err := pass.peakRSS(c.annotation)
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
	namespaces  []string
	clean       bool // no child process and no connection in the last trace
	runs        int
}

// measure runs n ADDs and gives their wall times in order. All namespaces exist from before the first
// ADD until after the last: the kernel takes a namespace apart in the background, under locks that an ADD needs too.
func (b *benchmark) measure(n int, annotation string) (walls []time.Duration, err error) {
	const warm = 5 // the first ones fill the page cache
	for i := range n + warm {
		netns, release, err := newNetNS()
		if err != nil {
			return nil, err
		}
		defer release()
		b.namespaces = append(b.namespaces[:i], netns)
	}
	for i, netns := range b.namespaces {
		cmd := b.add(netns, annotation, b.plugin)
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("ADD: %w: %s", err, cmd.Stdout)
		}
		wall := time.Since(begin)
		if i >= warm {
			walls = append(walls, wall)
		}
	}
	slices.Sort(walls)
	return walls, nil
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
	netns, release, err := newNetNS()
	if err != nil {
		return "", "", err
	}
	defer release()
	cmd := b.add(netns, annotation, strace, "-f", "-qq", "-o", log, "-e", "trace=fork,vfork,clone,clone3,execve,connect", b.plugin)
	if err := cmd.Run(); err != nil {
		return "", "", fmt.Errorf("ADD under strace: %w: %s", err, cmd.Stdout)
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

// peakRSS gives the plugin's own largest resident size in bytes. getrusage would count this program in, whose memory the child shares until it has
// called exec; so the child is stopped at its very end and /proc is read.
func (b *benchmark) peakRSS(annotation string) (peak int64, err error) {
	netns, release, err := newNetNS()
	if err != nil {
		return 0, err
	}
	defer release()
	runtime.LockOSThread() // ptrace answers only to the thread that began it
	defer runtime.UnlockOSThread()
	cmd := b.add(netns, annotation, b.plugin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer cmd.Wait() // it has been waited for; this frees the pipes
	pid := cmd.Process.Pid
	for begun := false; ; begun = true {
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
			return 0, err
		}
		if status.Exited() || status.Signaled() {
			break
		}
		signal := 0
		switch {
		case !begun:
			if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACEEXIT); err != nil {
				return 0, err
			}
		case status.TrapCause() == unix.PTRACE_EVENT_EXIT:
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				return 0, err
			}
			_, after, _ := strings.Cut(string(text), "VmHWM:")
			if _, err := fmt.Sscanf(after, "%d kB", &peak); err != nil {
				return 0, fmt.Errorf("no VmHWM in /proc/%d/status", pid)
			}
		default:
			signal = int(status.StopSignal()) // the Go runtime's own preemption
		}
		if err := unix.PtraceCont(pid, signal); err != nil {
			return 0, err
		}
	}
	if peak == 0 {
		return 0, errors.New("the plugin ended without a stop at its exit")
	}
	return peak << 10, nil
}

// newNetNS makes a network namespace that exists until release is called.
func newNetNS() (path string, release func(), err error) {
	ready, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the namespace goes with the thread
		err := unix.Unshare(unix.CLONE_NEWNET)
		path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		<-done
	}()
	if err := <-ready; err != nil {
		close(done)
		return "", nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return path, func() { close(done) }, nil
}
