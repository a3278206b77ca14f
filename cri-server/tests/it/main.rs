//! The server on a temporary root, driven over its socket as a kubelet does. Needs root and busybox-static.

mod calls;
mod devices;
mod lifecycle;
mod streams;
mod world;
