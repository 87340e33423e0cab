// Package images makes container images without a Docker daemon: from scratch, out of files on this disk, and so that the
// same files always give the same bytes.
//
// image.go turns a Spec (files, entrypoint, user, labels) into an image; write.go writes it as docker-archive (what
// "kind load image-archive", "ctr images import" and "docker load" take), as OCI layout with several platforms in
// one, or to a registry; libraries.go finds the shared libraries that a program needs. The command in build makes the image of the
// mesh itself; the end-to-end tests make theirs with the same package.
//
// It never runs anything that it puts into an image, and it knows nothing of Kubernetes.
package images
