"""Like OctaPi's first script: sixteen jobs that sleep (here hundredths of a second), and where they ran."""


def nap(hundredths):
    import socket
    import time

    time.sleep(hundredths / 100)
    return socket.gethostname(), hundredths


if __name__ == "__main__":
    import random

    import dispy

    cluster = dispy.JobCluster(nap, nodes="192.168.1.*")
    jobs = []
    for number in range(16):
        job = cluster.submit(random.randint(5, 20))
        job.id = number
        jobs.append(job)
    for job in jobs:
        host, slept = job()
        print(f"{host} did job {job.id} at {job.start_time} in {slept}")
    cluster.print_status()
    cluster.close()
