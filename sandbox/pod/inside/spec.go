package inside

// Name is argv[0] of a process that this package takes over.
const Name = "weft-container"

// File descriptors that a container's process inherits beside 0, 1 and 2.
const (
	// SpecFD is the read end of a pipe with the Spec as JSON. Its other end stays open in the parent until the program
	// runs; when it is closed before, the parent is gone and so is the reason to go on.
	SpecFD = 3
	// ErrorFD is the write end of a pipe that takes one line saying why the program could not be started. It is closed
	// without a byte when the program runs.
	ErrorFD = 4
)

// Mode is what the process is for.
type Mode string

const (
	Run   Mode = "run"   // build a root and execute the program in it
	Join  Mode = "join"  // enter the root of a running container and execute the program there
	Pause Mode = "pause" // stay: PID 1 of a PID namespace that the pod's containers share
)

// Spec is one process.
type Spec struct {
	Mode Mode

	// Namespaces are entered first, in order. The PID namespace is not among them: it is decided when a process is
	// forked, so the parent has done it.
	Namespaces []Namespace

	// Root is how the root of a Run is built.
	Root Root

	Argv []string // Argv[0] is looked up in PATH of Env, inside the root, unless it has a slash
	Env  []string
	Dir  string // working directory inside the root, made when it is missing

	UID, GID     int
	Groups       []int
	Capabilities uint64 // bounding set; effective too for UID 0
	NoNewPrivs   bool
}

// Namespace is a file that setns(2) takes, and its CLONE_NEW* flag.
type Namespace struct {
	Path string
	Flag int
}

// Root is a root file system: an empty tmpfs with things mounted in it.
type Root struct {
	// Point is an empty directory of the host where the root is put together. It stays empty for everybody else.
	Point string
	// Mounts are made in order; a later one may lie inside an earlier one.
	Mounts []Mount
	// Links are symbolic links made when nothing is at their place, target by path.
	Links [][2]string
	// Dirs are made with these modes (permission bits and sticky bit) before anything is mounted.
	Dirs []Dir
	// ReadOnly makes the root, and nothing mounted in it, read-only.
	ReadOnly bool
	// Bare leaves kernel files visible and writable in /proc and /sys that containers are normally kept from.
	Bare bool
}

// Dir is a directory of a new root.
type Dir struct {
	Path string
	Mode uint32
}

// Mount is a file or directory of the host that appears at Target.
type Mount struct {
	Source    string
	Target    string
	ReadOnly  bool
	Recursive bool // with everything mounted below Source
	NoSUID    bool
	Optional  bool // no error when Source does not exist
	// Volume names the mount in errors; empty for those that are not the user's.
	Volume string
}
