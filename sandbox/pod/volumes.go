package pod

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/sandbox/pod/inside"
)

// volume is a volume of a pod, ready to be mounted into its containers.
type volume struct {
	spec *corev1.Volume
	path string // of the host, directory or file
	// readOnly: containers may not write, whatever their mount says (configMap, secret, downwardAPI, projected).
	readOnly bool
	file     bool // an image volume: path is a program, which appears as a file in the mount's directory

	mu     sync.Mutex       // one projection at a time; guards what follows
	tokens map[string]token // by path in the volume
	renew  *time.Timer      // for the token that is due first
	ended  bool
}

// makeVolumes sets up all volumes. It may be called again after an error; what is there stays.
func (w *worker) makeVolumes() error {
	var errs []error
	for i := range w.pod.Spec.Volumes {
		spec := &w.pod.Spec.Volumes[i]
		w.mu.Lock()
		_, have := w.volumes[spec.Name]
		w.mu.Unlock()
		if have {
			continue
		}
		v, err := w.makeVolume(spec)
		if err != nil {
			errs = append(errs, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", spec.Name, err))
			continue
		}
		w.mu.Lock()
		w.volumes[spec.Name] = v
		w.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (w *worker) makeVolume(spec *corev1.Volume) (*volume, error) {
	v := &volume{spec: spec, path: w.dir("volumes", spec.Name)}
	switch {
	case spec.HostPath != nil:
		v.path = spec.HostPath.Path
		return v, checkHostPath(spec.HostPath)
	case spec.EmptyDir != nil, spec.VolumeSource == corev1.VolumeSource{}:
		return v, w.makeEmptyDir(v)
	case spec.Image != nil:
		image, err := w.r.image(spec.Image.Reference)
		v.path, v.file, v.readOnly = image.path, true, true
		return v, err
	case spec.ConfigMap != nil, spec.Secret != nil, spec.DownwardAPI != nil, spec.Projected != nil:
		v.readOnly = true
		if err := os.MkdirAll(v.path, 0o755); err != nil {
			return nil, err
		}
		return v, w.project(v)
	}
	return nil, errors.New("this kind of volume is not available here; emptyDir, hostPath, configMap, secret, downwardAPI, projected and image are")
}

// makeEmptyDir makes a directory that everybody may write to, as kubelet's is.
func (w *worker) makeEmptyDir(v *volume) error {
	if err := os.MkdirAll(v.path, 0o777); err != nil {
		return err
	}
	if e := v.spec.EmptyDir; e != nil && e.Medium == corev1.StorageMediumMemory && !isMount(v.path) {
		options := "mode=0777"
		if e.SizeLimit != nil && e.SizeLimit.Value() > 0 {
			options += fmt.Sprintf(",size=%d", e.SizeLimit.Value())
		}
		if err := unix.Mount("weft", v.path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("tmpfs: %w", err)
		}
	}
	mode := os.FileMode(0o777)
	if g := fsGroup(w.pod); g != nil {
		if err := os.Chown(v.path, -1, int(*g)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return os.Chmod(v.path, mode)
}

func isMount(path string) bool {
	var own, parent unix.Stat_t
	return unix.Stat(path, &own) == nil && unix.Stat(filepath.Dir(path), &parent) == nil && own.Dev != parent.Dev
}

// checkHostPath does what hostPath.type says (Kubernetes API: HostPathType; the texts are kubelet's).
func checkHostPath(h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	failed := func(format string) error {
		return fmt.Errorf("hostPath type check failed: "+format, h.Path)
	}
	info, err := os.Stat(h.Path)
	switch kind {
	case corev1.HostPathUnset:
		if errors.Is(err, os.ErrNotExist) {
			// Container runtimes make a missing source of a bind mount.
			return os.MkdirAll(h.Path, 0o755)
		}
		return err
	case corev1.HostPathDirectoryOrCreate:
		if errors.Is(err, os.ErrNotExist) {
			return os.MkdirAll(h.Path, 0o755)
		}
		if err == nil && !info.IsDir() {
			return failed("%s is not a directory")
		}
		return err
	case corev1.HostPathFileOrCreate:
		if errors.Is(err, os.ErrNotExist) {
			f, err := os.OpenFile(h.Path, os.O_CREATE, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
		if err == nil && info.IsDir() {
			return failed("%s is not a file")
		}
		return err
	}
	wanted := map[corev1.HostPathType]struct {
		mode os.FileMode
		text string
	}{
		corev1.HostPathDirectory: {os.ModeDir, "%s is not a directory"},
		corev1.HostPathFile:      {0, "%s is not a file"},
		corev1.HostPathSocket:    {os.ModeSocket, "%s is not a socket file"},
		corev1.HostPathCharDev:   {os.ModeDevice | os.ModeCharDevice, "%s is not a character device"},
		corev1.HostPathBlockDev:  {os.ModeDevice, "%s is not a block device"},
	}
	want, known := wanted[kind]
	if !known {
		return fmt.Errorf("hostPath.type %q is not known", kind)
	}
	if err != nil || info.Mode().Type() != want.mode {
		return failed(want.text)
	}
	return nil
}

// volumeMounts are the container's mounts, outer ones first.
func (c *container) volumeMounts(env environment) ([]inside.Mount, error) {
	var out []inside.Mount
	for i := range c.spec.VolumeMounts {
		m, err := c.volumeMount(&c.spec.VolumeMounts[i], env)
		if err != nil {
			return nil, &configError{"CreateContainerConfigError", err}
		}
		out = append(out, m)
	}
	// A mount inside another must come after it, in whatever order they are written.
	depth := func(m inside.Mount) int { return strings.Count(path.Clean(m.Target), "/") }
	for i := 1; i < len(out); i++ {
		for j := i; j > 0 && depth(out[j]) < depth(out[j-1]); j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out, nil
}

func (c *container) volumeMount(vm *corev1.VolumeMount, env environment) (inside.Mount, error) {
	w := c.w
	w.mu.Lock()
	v := w.volumes[vm.Name]
	w.mu.Unlock()
	if v == nil {
		return inside.Mount{}, fmt.Errorf("volumeMounts: %q: the pod has no volume of this name", vm.Name)
	}
	m := inside.Mount{
		Source:    v.path,
		Target:    path.Join("/", vm.MountPath),
		ReadOnly:  vm.ReadOnly || v.readOnly,
		Recursive: v.spec.HostPath != nil,
		Volume:    vm.Name,
	}
	if v.file {
		m.Target = path.Join(m.Target, path.Base(v.path))
		return m, nil
	}
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		missing := ""
		sub = expand(vm.SubPathExpr, func(name string) (string, bool) {
			value, ok := env.lookup(name)
			if !ok {
				missing = name
			}
			return value, ok
		})
		if missing != "" {
			return m, fmt.Errorf("volumeMounts: %s: subPathExpr: missing value for %q", vm.Name, missing)
		}
	}
	if sub == "" {
		return m, nil
	}
	source, err := w.subPath(v, sub)
	if err != nil {
		return m, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, c.spec.Name, err)
	}
	m.Source = source
	return m, nil
}

// subPath finds or makes a directory, or finds a file, inside a volume. As in Kubernetes a file of a ConfigMap is held
// by what its link points at now, and does not follow a changed ConfigMap.
func (w *worker) subPath(v *volume, sub string) (string, error) {
	if path.IsAbs(sub) || sub == ".." || strings.HasPrefix(path.Clean(sub), "../") {
		return "", fmt.Errorf("subPath %q must stay in the volume", sub)
	}
	root, err := os.OpenRoot(v.path)
	if err != nil {
		return "", err
	}
	defer root.Close()
	// os.Root refuses links that lead out of the volume.
	if _, err := root.Stat(sub); errors.Is(err, os.ErrNotExist) {
		if err := root.MkdirAll(sub, 0o750); err != nil {
			return "", err
		}
		mode := os.FileMode(0o777)
		if g := fsGroup(w.pod); g != nil {
			if err := root.Chown(sub, -1, int(*g)); err != nil {
				return "", err
			}
			mode |= os.ModeSetgid
		}
		if err := root.Chmod(sub, mode); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(filepath.Join(v.path, sub))
}
