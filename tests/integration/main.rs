//! The real server, seen from outside: over its sockets, its signals, its files
//! and what the kernel tells of its processes. A module a subject.

mod backpressure;
mod bad_configuration;
mod bad_input;
mod begun;
mod bench;
mod connections;
mod control;
mod demo;
mod descriptors;
mod even;
mod half_close;
mod hub;
mod kills;
mod lifecycle;
mod limits;
mod logs;
mod master;
mod messages;
mod metrics;
mod output;
mod own_files;
mod per_ip;
mod privileges;
mod regressions;
mod reload;
mod reload_storm;
mod resp;
mod service;
mod status;
mod stopped;
mod top;
mod topics;
mod topics_client;
mod unix_sockets;
mod volume;
