package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ErrNotFound is wrapped by errors about a pod or container that the Runner does not have.
var ErrNotFound = errors.New("not found")

// Runner runs pods. Its methods may be called concurrently.
//
// What a user of Kubernetes may notice:
//   - A container's file system is an empty tmpfs with the host's /usr, /bin and /lib in it, read-only, and the image's
//     program at its host path. Its default user is root, unless a security context says otherwise.
//   - Until a container has passed its first startup probe (or readiness probe, when it has no other) network probes
//     are tried every few milliseconds; a failure of these extra attempts counts for nothing. The first attempt that
//     counts comes one period after kubelet's initial delay. So a quick container is ready quickly, where kubelet's
//     smallest period is a second; everything else about probes is kubelet's.
//   - CPU and memory are not limited, seccomp and AppArmor profiles are not applied, images are never pulled.
//   - Variables of services (enableServiceLinks) are not set; names are resolved by DNS.
//   - hostPID and hostIPC are refused.
type Runner struct {
	cfg Config
	log *slog.Logger
	net *network

	mu      sync.Mutex
	workers map[types.UID]*worker
}

// New checks cfg and prepares Root. It does not touch what a former run left: see Clean. It sets the umask of the
// program to 022.
func New(cfg Config) (*Runner, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("pods need root: namespaces, mounts and other users' processes are made for them")
	}
	if !filepath.IsAbs(cfg.Root) {
		return nil, fmt.Errorf("state directory %q: must be an absolute path", cfg.Root)
	}
	for image, program := range cfg.Images {
		if !filepath.IsAbs(program) {
			return nil, fmt.Errorf("image %s=%s: the program must be an absolute path", image, program)
		}
	}
	if cfg.BackOff <= 0 {
		cfg.BackOff = 10 * time.Second
	}
	if cfg.DNS.Domain == "" {
		cfg.DNS.Domain = "cluster.local"
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Status == nil {
		cfg.Status = func(*corev1.Pod, corev1.PodStatus) {}
	}
	if cfg.Event == nil {
		cfg.Event = func(*corev1.Pod, string, string, string) {}
	}
	net, err := newNetwork(cfg.CNI, cfg.Root)
	if err != nil {
		return nil, err
	}
	// Files made for pods are read by other users, whatever the shell of this program's user says.
	unix.Umask(0o022)
	r := &Runner{cfg: cfg, log: cfg.Log, net: net, workers: map[types.UID]*worker{}}
	return r, r.makeDirs()
}

func (r *Runner) makeDirs() error {
	for _, dir := range []string{"netns", "ipcns", "utsns", "pods"} {
		if err := os.MkdirAll(r.path(dir), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runner) path(elements ...string) string {
	return filepath.Join(append([]string{r.cfg.Root}, elements...)...)
}

// Start begins to run a pod and returns at once; what happens is told through Config.Status and Config.Event until
// Stop. The pod needs a UID that the Runner does not have yet. The Runner keeps its own copy.
func (r *Runner) Start(pod *corev1.Pod) error {
	name := pod.Namespace + "/" + pod.Name
	if pod.UID == "" || string(pod.UID) != filepath.Base(string(pod.UID)) || pod.UID == ".." || pod.UID == "." {
		return fmt.Errorf("pod %s: metadata.uid %q: needs a value that is a file name", name, pod.UID)
	}
	if err := refuse(pod); err != nil {
		return fmt.Errorf("pod %s: %w", name, err)
	}
	w := newWorker(r, pod.DeepCopy())
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.workers[pod.UID] != nil {
		return fmt.Errorf("pod %s: metadata.uid %s runs already", name, pod.UID)
	}
	r.workers[pod.UID] = w
	go w.run()
	return nil
}

// refuse names what cannot be kept, rather than running a pod with less than it asks for.
func refuse(pod *corev1.Pod) error {
	switch {
	case len(pod.Spec.Containers) == 0:
		return errors.New("spec.containers: a pod needs at least one container")
	case pod.Spec.HostPID:
		return errors.New("spec.hostPID: not available here; use shareProcessNamespace to see the pod's own processes")
	case pod.Spec.HostIPC:
		return errors.New("spec.hostIPC: not available here")
	}
	return nil
}

// Stop ends a pod as kubelet does: all preStop hooks at once; SIGTERM to the containers, then to sidecars in reverse order; SIGKILL
// after grace; then CNI DEL and all that the pod left on the machine is removed, logs too. It returns when that is
// done, also when ctx ends before: the rest of the grace is then cut short. ErrNotFound when there is no such pod.
func (r *Runner) Stop(ctx context.Context, uid types.UID, grace time.Duration) error {
	w, err := r.worker(uid)
	if err != nil {
		return err
	}
	w.stop(ctx, grace)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.workers, uid)
	return nil
}

// Update replaces labels and annotations of a running pod, for downwardAPI volumes; the rest of a pod is immutable.
func (r *Runner) Update(pod *corev1.Pod) error {
	w, err := r.worker(pod.UID)
	if err != nil {
		return err
	}
	w.relabel(pod.Labels, pod.Annotations)
	return nil
}

// Refresh projects ConfigMaps and Secrets anew into the volumes of all pods: call it when one changed. It returns when
// that is done. Volumes whose content is the same are not touched.
func (r *Runner) Refresh() {
	for _, w := range r.all() {
		w.refreshVolumes()
	}
}

// NetNS returns the path of a pod's network namespace while it has one of its own.
func (r *Runner) NetNS(uid types.UID) (path string, ok bool) {
	w, err := r.worker(uid)
	if err != nil {
		return "", false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sandbox == nil || w.sandbox.netns == "" {
		return "", false
	}
	return w.sandbox.netns, true
}

// Check asks the CNI chain whether a pod's network is still as it was made (CNI spec 1.1, section 2: CHECK).
func (r *Runner) Check(ctx context.Context, uid types.UID) error {
	w, err := r.worker(uid)
	if err != nil {
		return err
	}
	w.mu.Lock()
	s := w.sandbox
	w.mu.Unlock()
	if s == nil || !s.network {
		return fmt.Errorf("pod %s: network of its own: %w", w.name(), ErrNotFound)
	}
	return r.net.check(ctx, w.pod, s)
}

func (r *Runner) worker(uid types.UID) (*worker, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.workers[uid]; w != nil {
		return w, nil
	}
	return nil, fmt.Errorf("pod with UID %s: %w", uid, ErrNotFound)
}

func (r *Runner) all() []*worker {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*worker, 0, len(r.workers))
	for _, w := range r.workers {
		out = append(out, w)
	}
	return out
}

// randomID is a container ID as runtimes make them.
func randomID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
