package pod

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/weft-mesh/weft/sandbox/pod/inside"
)

// hostDirs are what programs of the host need of the host. On a merged-/usr system most are links, which stay links.
var hostDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix"}

// hostFiles are what programs expect in /etc beyond the files that are made for each pod.
var hostFiles = []string{
	"/etc/alternatives", "/etc/ca-certificates", "/etc/ca-certificates.conf", "/etc/ld.so.cache", "/etc/ld.so.conf",
	"/etc/ld.so.conf.d", "/etc/localtime", "/etc/mime.types", "/etc/pki", "/etc/protocols", "/etc/services", "/etc/ssl",
}

// prepare translates the container into what package inside does. Errors are of type *configError: nothing has run.
func (c *container) prepare() (inside.Spec, error) {
	w := c.w
	image, err := w.r.image(c.spec.Image)
	if err != nil {
		return inside.Spec{}, err
	}
	env, err := c.environment()
	if err != nil {
		return inside.Spec{}, err
	}
	w.mu.Lock()
	s := w.sandbox
	w.mu.Unlock()
	if s == nil {
		return inside.Spec{}, &configError{"ContainerCreating", errors.New("the pod is stopping")}
	}
	spec := inside.Spec{Mode: inside.Run, Namespaces: s.spaces(), Dir: c.spec.WorkingDir}
	if err := c.identify(&spec); err != nil {
		return inside.Spec{}, err
	}
	home := "/"
	if spec.UID == 0 {
		home = "/root"
	}
	spec.Env = env.list(w.hostname(), home)
	spec.Argv = []string{image.place}
	if len(c.spec.Command) > 0 {
		spec.Argv = expandAll(c.spec.Command, env)
		// A command may name the program by the place that it has in the true image.
		if path.Base(spec.Argv[0]) == path.Base(image.place) {
			spec.Argv[0] = image.place
		}
	}
	spec.Argv = append(spec.Argv, expandAll(c.spec.Args, env)...)
	spec.Root, err = c.root(image, env)
	return spec, err
}

func expandAll(list []string, env environment) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = expand(s, env.lookup)
	}
	return out
}

// root describes the container's file system.
func (c *container) root(image program, env environment) (inside.Root, error) {
	w := c.w
	privileged := c.spec.SecurityContext != nil && isTrue(c.spec.SecurityContext.Privileged)
	root := inside.Root{
		Point:    w.dir("roots", c.spec.Name),
		ReadOnly: c.spec.SecurityContext != nil && isTrue(c.spec.SecurityContext.ReadOnlyRootFilesystem),
		Bare:     privileged,
		Dirs: []inside.Dir{
			{Path: "/etc", Mode: 0o755}, {Path: "/home", Mode: 0o755}, {Path: "/root", Mode: 0o700}, {Path: "/run", Mode: 0o755},
			{Path: "/tmp", Mode: 0o1777}, {Path: "/var/tmp", Mode: 0o1777}, {Path: "/var/log", Mode: 0o755}, {Path: "/var/lib", Mode: 0o755},
		},
		Links: [][2]string{{"../run", "/var/run"}},
	}
	if err := os.MkdirAll(root.Point, 0o700); err != nil {
		return root, &configError{"CreateContainerError", err}
	}
	for _, dir := range hostDirs {
		if target, err := os.Readlink(dir); err == nil {
			root.Links = append(root.Links, [2]string{target, dir})
			continue
		}
		root.Mounts = append(root.Mounts, inside.Mount{Source: dir, Target: dir, ReadOnly: true, NoSUID: true, Recursive: dir == "/nix", Optional: true})
	}
	for _, file := range hostFiles {
		root.Mounts = append(root.Mounts, inside.Mount{Source: file, Target: file, ReadOnly: true, NoSUID: true, Optional: true})
	}
	for _, name := range etcFiles {
		// kubelet mounts these writable unless the root is read-only.
		root.Mounts = append(root.Mounts, inside.Mount{Source: w.dir("etc", name), Target: "/etc/" + name, ReadOnly: root.ReadOnly})
	}
	if image.place != image.path {
		// The directory is the image's alone, so what the host has in it is out of sight.
		bin := w.dir("bin", c.spec.Name)
		if err := os.MkdirAll(bin, 0o755); err != nil {
			return root, &configError{"CreateContainerError", err}
		}
		if err := os.WriteFile(filepath.Join(bin, path.Base(image.place)), nil, 0o755); err != nil {
			return root, &configError{"CreateContainerError", err}
		}
		root.Mounts = append(root.Mounts,
			inside.Mount{Source: bin, Target: path.Dir(image.place), ReadOnly: true, NoSUID: true},
			inside.Mount{Source: image.path, Target: image.place, ReadOnly: true, NoSUID: true})
	}
	message := c.spec.TerminationMessagePath
	if message == "" {
		message = "/dev/termination-log"
	}
	root.Mounts = append(root.Mounts, inside.Mount{Source: w.dir("termination", c.spec.Name), Target: message})
	mounts, err := c.volumeMounts(env)
	root.Mounts = append(root.Mounts, mounts...)
	return root, err
}

// program is what an image is mapped to: a file of the host, and its place in the container. A program of the host's
// own directories stays where it is, since it may look for its files from there; others go where images have theirs.
type program struct{ path, place string }

// imageBin is where an image's program is found, through PATH too.
const imageBin = "/usr/local/bin"

// image finds the program that an image is mapped to.
func (r *Runner) image(name string) (program, error) {
	r.mu.Lock()
	images := r.cfg.Images
	r.mu.Unlock()
	found, ok := mapped(images, name)
	if !ok {
		return program{}, &configError{"ImageNotMapped", fmt.Errorf("image %q is not mapped to a program of this host: map it with --image %s=/path/of/program (while the sandbox runs: weft sandbox image %[2]s=/path/of/program)", name, untagged(name))}
	}
	if !isProgram(found) {
		return program{}, &configError{"ImageNotMapped", fmt.Errorf("image %q is mapped to %s, which is not an executable file: build it, or map another with --image %s=/path/of/program", name, found, untagged(name))}
	}
	for _, dir := range hostDirs {
		if strings.HasPrefix(found, dir+"/") {
			return program{found, found}, nil
		}
	}
	// A link would be followed outside of the container.
	resolved, err := filepath.EvalSymlinks(found)
	if err != nil {
		return program{}, &configError{"ImageNotMapped", err}
	}
	if info, err := os.Stat(imageBin); err != nil || !info.IsDir() {
		return program{}, &configError{"CreateContainerError", fmt.Errorf("%s is needed to mount programs at: make the directory", imageBin)}
	}
	return program{resolved, path.Join(imageBin, path.Base(found))}, nil
}

// Map adds to Config.Images, or replaces what is there. Containers that wait for their image start at their next try.
func (r *Runner) Map(image, path string) error {
	if !filepath.IsAbs(path) || !isProgram(path) {
		return fmt.Errorf("image %s: %s is not the absolute path of a program", image, path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	images := maps.Clone(r.cfg.Images)
	if images == nil {
		images = map[string]string{}
	}
	images[image] = path
	r.cfg.Images = images
	return nil
}

// Images is the map from images to programs as it is now.
func (r *Runner) Images() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.cfg.Images)
}

// mapped follows the precedence that Config.Images states.
func mapped(images map[string]string, image string) (program string, ok bool) {
	full := canonical(image)
	best := -1
	for key, value := range images {
		var score int
		prefix, wild := strings.CutSuffix(key, "*")
		switch name := canonical(prefix); {
		case wild && strings.HasPrefix(full, name):
			score = len(name)
		case wild:
			continue
		case name == full:
			score = 1 << 21
		case name == untagged(full):
			score = 1 << 20
		default:
			continue
		}
		if score > best {
			best, program = score, value
		}
	}
	return program, best >= 0
}

// canonical adds Docker's defaults: docker.io/ and library/.
func canonical(image string) string {
	domain, rest, ok := strings.Cut(image, "/")
	if !ok {
		return "docker.io/library/" + image
	}
	if domain == "localhost" || strings.ContainsAny(domain, ".:") {
		if domain == "docker.io" && !strings.Contains(rest, "/") {
			return "docker.io/library/" + rest
		}
		return image
	}
	return "docker.io/" + image
}

// untagged is an image reference without tag and digest.
func untagged(image string) string {
	image, _, _ = strings.Cut(image, "@")
	dir, name := path.Split(image)
	name, _, _ = strings.Cut(name, ":")
	return dir + name
}
