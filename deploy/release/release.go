// Package release says what this build is called, and where its image is: the one place that the programs, the charts'
// defaults and the images agree on. Standard library only, because the smallest programs import it.
package release

import (
	"regexp"
	"runtime/debug"
	"strings"
)

// Hub is where released images are (chart value global.hub).
const Hub = "docker.io/weftmesh"

// ImageName is the image with all programs of the mesh.
const ImageName = "weft"

// stamped is written by the linker: -X github.com/weft-mesh/weft/deploy/release.stamped=1.2.3.
var stamped string

// Version is the release that this program belongs to: "1.2.3", or "dev" for everything that is not one.
func Version() string {
	if stamped != "" {
		return tag(stamped)
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return tag(info.Main.Version)
	}
	return dev
}

const dev = "dev"

var (
	semantic = regexp.MustCompile(`^v?([0-9]+\.[0-9]+\.[0-9]+(?:-[0-9A-Za-z.-]+)?)$`)
	// Go names a commit that has no tag after its time: v0.0.0-20261121103000-0123456789ab.
	pseudo = regexp.MustCompile(`[-.][0-9]{14}-[0-9a-f]{12}$`)
)

// tag makes an image tag of a module's version. A version of a dirty tree ("+dirty") is no release, and has a character
// that no tag may have.
func tag(version string) string {
	m := semantic.FindStringSubmatch(strings.TrimSuffix(version, "+incompatible"))
	if m == nil || pseudo.MatchString(version) {
		return dev
	}
	return m[1]
}

// Image is the reference of the image that this program comes in: "docker.io/weftmesh/weft:1.2.3".
func Image() string { return Hub + "/" + ImageName + ":" + Version() }
