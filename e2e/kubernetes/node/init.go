package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Program is a program that the node's first process starts on request.
type Program struct {
	Name string   `json:"name"`
	Args []string `json:"args"` // with the path of the program first
	Env  []string `json:"env,omitempty"`
	Log  string   `json:"log"`
}

// State of a program.
type State struct {
	Program
	PID     int    `json:"pid"` // as the node's processes see it
	Running bool   `json:"running"`
	Exit    string `json:"exit,omitempty"` // how it ended
}

// supervisor is PID 1 of a node. It starts programs, takes note of their end, and buries whoever was left to it.
type supervisor struct {
	mu       sync.Mutex
	programs map[string]*State
}

// Init is the node's first process: Up starts it in new namespaces. It prepares mounts and network, then serves
// requests to start, stop and list programs at init.sock until it is killed.
func Init(dir string) error {
	if os.Getpid() != 1 {
		return errors.New("init is what `up` starts by itself")
	}
	var spec Spec
	b, err := os.ReadFile(layout{dir}.path("spec.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	l := layout{dir}
	if err := l.mount(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(NodeName)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := connect(spec.DualStack); err != nil {
		return fmt.Errorf("the node's network: %w", err)
	}
	s := &supervisor{programs: map[string]*State{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go s.bury(ended)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM) // as PID 1; `down` kills

	socket := l.path("init.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /programs", s.list)
	mux.HandleFunc("PUT /programs/{name}", s.start)
	mux.HandleFunc("POST /programs/{name}/{signal}", s.signal)
	return http.Serve(listener, mux)
}

func (s *supervisor) list(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := json.NewEncoder(w).Encode(s.programs); err != nil {
		slog.Warn("list programs", "error", err)
	}
}

func (s *supervisor) start(w http.ResponseWriter, r *http.Request) {
	var p Program
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil || len(p.Args) == 0 {
		http.Error(w, "a program with args is needed", http.StatusBadRequest)
		return
	}
	p.Name = r.PathValue("name")
	// The lock is held over the start: the end of a program that ends at once is noted after its beginning.
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.programs[p.Name]; old != nil && old.Running {
		http.Error(w, p.Name+" runs already", http.StatusConflict)
		return
	}
	pid, err := spawn(p)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.programs[p.Name] = &State{Program: p, PID: pid, Running: true}
}

func spawn(p Program) (int, error) {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	process, err := os.StartProcess(p.Args[0], p.Args, &os.ProcAttr{
		Dir: "/", Env: p.Env, Files: []*os.File{nil, log, log}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	pid := process.Pid
	return pid, process.Release()
}

func (s *supervisor) signal(w http.ResponseWriter, r *http.Request) {
	number, err := strconv.Atoi(r.PathValue("signal"))
	if err != nil {
		http.Error(w, "the signal's number is needed", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.programs[r.PathValue("name")]
	if p == nil || !p.Running {
		http.Error(w, r.PathValue("name")+" does not run", http.StatusNotFound)
		return
	}
	if err := syscall.Kill(p.PID, syscall.Signal(number)); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// bury waits for every process that ends: our programs, and the orphans that PID 1 inherits.
func (s *supervisor) bury(ended <-chan os.Signal) {
	for range ended {
		for {
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			s.ended(pid, status)
		}
	}
}

func (s *supervisor) ended(pid int, status syscall.WaitStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.programs {
		if p.PID != pid || !p.Running {
			continue
		}
		p.Running = false
		p.Exit = fmt.Sprintf("exit status %d", status.ExitStatus())
		if status.Signaled() {
			p.Exit = "signal " + status.Signal().String()
		}
		slog.Info("ended", "program", p.Name, "exit", p.Exit)
	}
}

// mount makes the node's view of the file system.
func (l layout) mount() error {
	// Changes on the machine are seen here, ours stay here, and among the node's processes and containers they spread, as with systemd.
	for _, flags := range []uintptr{unix.MS_SLAVE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|flags, ""); err != nil {
			return fmt.Errorf("mount propagation of /: %w", err)
		}
	}
	// Other clusters' network namespaces are mounted below /run. Our copies would keep them alive.
	if err := unmountBelow("/run"); err != nil {
		return err
	}
	for _, m := range []struct{ kind, at, options string }{
		{"proc", "/proc", ""},
		{"tmpfs", "/run", "mode=755,size=64m"},
		{"overlay", "/etc", l.overlay("/etc")},
		{"overlay", "/opt", l.overlay("/opt")},
		{"overlay", "/var/lib", l.overlay("/var/lib")},
	} {
		if m.kind == "overlay" {
			for _, d := range []string{"upper", "work"} {
				if err := os.MkdirAll(l.path("fs", m.at, d), 0o755); err != nil {
					return err
				}
			}
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.at, err)
		}
	}
	for at, from := range l.binds() {
		if err := errors.Join(os.MkdirAll(at, 0o755), os.MkdirAll(from, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount(from, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", from, at, err)
		}
	}
	if err := os.MkdirAll(podNetNSDir, 0o755); err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n" + NodeIP + " " + NodeName + "\n"
	return os.WriteFile("/etc/hosts", []byte(hosts), 0o644)
}

func (l layout) overlay(tree string) string {
	return fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", tree, l.path("fs", tree, "upper"), l.path("fs", tree, "work"))
}

func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.HasPrefix(fields[1], filepath.Clean(dir)+"/") {
			if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmount %s in the node: %w", fields[1], err)
			}
		}
	}
	return nil
}
